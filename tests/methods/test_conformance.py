"""Every registered method, source and calibrator, on a tiny ViT and Swin, in both schemes: the contract of `Method`.

Not every cross: see `names`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import switches
import torch
from tiny_networks import FURTHER, NETWORKS, FakeContext, RandomImages, images, tiny_model
from tiny_options import TINY

from harness.api.contracts import VisionModel
from harness.api.errors import DataFreeViolation
from harness.api.plugins import import_target
from harness.api.sealing import sealed_data
from harness.api.spec import SCHEMES, BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.requirements import unsuited
from methods.catalog import CALIBRATORS, METHODS, SOURCES, TRANSFORMS
from methods.core.audit import audit
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.quantized import MissingParametersError, Quantized

SAMPLE = 12  # crosses that are tested beyond those of a reference


def spread(sources: Sequence[str], calibrators: Sequence[str], least: int) -> list[str]:
    """At least `least` crosses, or all, that hold every source and calibrator: diagonals of the table, one by one."""
    rows, columns = len(sources), len(calibrators)
    number = min(max(least, rows, columns), rows * columns)
    period = math.lcm(rows, columns)  # of a diagonal; the next one begins a column further
    return [f"{sources[i % rows]}+{calibrators[(i + i // period) % columns]}" for i in range(number)]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """What reads it fails here; a run of the project's own methods does not fill it (`CellRunner.measure`)."""
    with switches.put_back():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        yield


def names() -> list[str]:
    """Every method, every source with min-max, every calibrator with real images and with noise, every transform,
    a few more crosses.

    All sources with all calibrators would be hundreds of runs. A source is known to its calibrator by its images alone,
    so one calibrator shows that they are images, and two sources (well-behaved and wild) that the calibrator takes any;
    the sample is for what nobody thought of. It is fixed: the registries alone decide it.
    """
    found = [f"{source}+minmax" for source in SOURCES]
    found += [f"{source}+{calibrator}" for source in ("real", "noise") for calibrator in CALIBRATORS]
    found += [f"noise+{transform}+minmax" for transform in TRANSFORMS]
    others = [source for source in SOURCES if source not in {"real", "noise"}]
    found += spread(others, [calibrator for calibrator in CALIBRATORS if calibrator != "minmax"], SAMPLE)
    return [*METHODS, *dict.fromkeys(found)]


NAMES = names()
FAST = [*METHODS, *(f"{source}+minmax" for source in SOURCES), *(f"noise+{calibrator}" for calibrator in CALIBRATORS)]


def resolve(name: str) -> Any:
    catalog = Catalog.default()
    infos = catalog.resolve(name).infos
    overrides = {
        info.name: {
            k: v for k, v in TINY.items() if all(k in i.options.model_fields for i in infos if i.name == info.name)
        }
        for info in infos
    }
    return catalog.resolve(name, "quick", {k: v for k, v in overrides.items() if v})


def fitting(requires: Sequence[str]) -> str:
    """The first tiny network that has what is required."""
    return next(n for n in (*NETWORKS, *FURTHER) if not any(import_target(r)(tiny_model(n), "full") for r in requires))


def run(name: str, model: VisionModel, scheme: str, bits: str = "W4A6", seed: int = 0) -> tuple[Any, FakeContext]:
    method = resolve(name)
    ctx = FakeContext(seed)
    calib = RandomImages() if method.data == "images" else None
    spec = BitSpec.parse(bits)
    built = method.build()
    lacks = [unsuited(method, spec, scheme)]
    lacks += [import_target(required)(model, scheme) for required in method.requires]
    reason = next(filter(None, lacks), None)
    if reason is None and hasattr(built, "skip"):
        reason = built.skip(model, spec=spec, scheme=scheme)
    if reason is not None:
        assert reason.endswith(".") or " " in reason
        pytest.skip(reason)
    return built.quantize(model, spec=spec, scheme=scheme, calib=calib, ctx=ctx), ctx


def test_the_sampled_crosses_hold_everything() -> None:
    parts = [name.split("+") for name in NAMES if name not in METHODS]
    assert {part[0] for part in parts} == set(SOURCES)
    assert {part[-1] for part in parts} == set(CALIBRATORS)
    assert {name for part in parts for name in part[1:-1]} == set(TRANSFORMS)
    for rows, columns in ((1, 1), (2, 5), (4, 8), (6, 13), (3, 4), (20, 3)):
        sources, calibrators = [f"s{i}" for i in range(rows)], [f"c{i}" for i in range(columns)]
        found = spread(sources, calibrators, 12)
        assert len(set(found)) == len(found) == min(max(12, rows, columns), rows * columns)
        assert {part for name in found for part in name.split("+")} == {*sources, *calibrators}
    assert spread([], ["c0"], 12) == []


@pytest.mark.usual(name=FAST, scheme="full")
@pytest.mark.usual(name=FAST, network="vit")
@pytest.mark.usual(network="vit", scheme="full")
@pytest.mark.fast(name=FAST, scheme="full")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, network: str, scheme: str) -> None:
    model = tiny_model(network)
    before = copy.deepcopy(model.net.state_dict())
    quantized, ctx = run(name, model, scheme)
    x = images(3, seed=5)
    output = quantized(x)

    assert output.shape == (3, model.num_classes)
    assert torch.isfinite(output).all()
    # Something was quantized, and the float model was not touched.
    assert not torch.equal(output, model.net(x))
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    assert not any(p.requires_grad for p in model.net.parameters())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())

    graph = trace(model)
    sites = find_sites(graph, scheme, BitSpec(4, 6))
    summary = quantized.summary
    assert summary.weight_sites == len(sites.weights)
    # Only a method with a quantizer for softmax outputs of its own has more sites than the scheme.
    softmaxes = [label for label in summary.activation_ranges if "/softmax." in label and label.endswith(":out")]
    assert len(softmaxes) in (0, len(graph.of_kind("softmax")))
    assert summary.activation_sites == len(sites.activations) + len(softmaxes)
    total = sum(p.numel() for p in model.net.parameters())
    assert sum(layer.size for layer in summary.layers) + summary.float_values == total
    assert {layer.bits for layer in summary.layers} == {4}
    assert all(low <= 0.0 <= high for low, high in summary.activation_ranges.values())
    # All of it says how it is stored.
    assert all(layer.format is not None and layer.format.bits == 4 and layer.scale_bits for layer in summary.layers)
    stored = summary.activation_formats
    assert {site: shown.bits for site, shown in stored.items()} == summary.activation_bits
    assert summary.activation_scale_bits.keys() == stored.keys()
    assert all(bits >= 0 for bits in summary.activation_scale_bits.values())
    # What layers receive and the weights that they use have no more values than their bits allow, site by site.
    audited, findings = audit(model, quantized, x, scheme=scheme, spec=BitSpec(4, 6), thorough=True)
    assert not findings
    assert torch.equal(audited, output)

    repeated, _ = run(name, model, scheme)
    assert torch.equal(repeated(x), output)
    if name in METHODS:
        assert ctx.kept is not None


FEW_BITS = itertools.product(("W2A4", "W2A8", "W3A8"), NETWORKS, SCHEMES)
EACH = [*METHODS, *(f"noise+{calibrator}" for calibrator in CALIBRATORS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), list(zip(EACH, itertools.cycle(FEW_BITS), strict=False)))
def test_few_weight_bits(name: str, case: tuple[str, str, str]) -> None:
    """One case for each method; neighbours in the list have different ones."""
    bits, network, scheme = case
    model, spec = tiny_model(network), BitSpec.parse(bits)
    if unsuited(resolve(name), spec, scheme):
        scheme = "matmul"
    quantized, _ = run(name, model, scheme, bits)
    x = images(3, seed=5)
    output, findings = audit(model, quantized, x, scheme=scheme, spec=spec, thorough=True)
    assert torch.isfinite(output).all()
    assert not torch.equal(output, model.net(x))
    assert not findings
    assert {layer.bits for layer in quantized.summary.layers} == {spec.weight}


@pytest.mark.usual(name=[*METHODS])
@pytest.mark.usual(name=EACH, network="vit")
@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [n for n in NAMES if any(info.mixed for info in Catalog.default().resolve(n).infos)])
def test_mixed_precision(name: str, network: str) -> None:
    model = tiny_model(network)
    quantized, _ = run(name, model, "full", "MP5")
    layers = quantized.summary.layers
    assert sum(layer.size * layer.bits for layer in layers) <= 5 * sum(layer.size for layer in layers)
    assert quantized.summary.bit_operations > 0
    assert not audit(model, quantized, images(3), scheme="full", spec=BitSpec.parse("MP5"), thorough=True)[1]
    repeated, _ = run(name, model, "full", "MP5")
    assert torch.equal(repeated(images(3, seed=5)), quantized(images(3, seed=5)))


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "real"])
def test_synthetic_images_are_valid_and_depend_on_the_repetition(name: str) -> None:
    method = resolve(f"{name}+minmax")
    model, source = tiny_model(fitting(method.requires)), method.build()
    kept = []
    for seed in (0, 0, 1):
        ctx = FakeContext(seed)
        source.quantize(model, spec=BitSpec(4, 8), scheme="full", calib=None, ctx=ctx)
        kept.append(ctx.kept)
    assert kept[0].shape == (4, *model.input_shape)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    if name != "noise":
        low, high = model.pixel_bounds()
        assert (kept[0] >= low - 1e-6).all()
        assert (kept[0] <= high + 1e-6).all()


def test_sources_of_one_repetition_start_from_the_same_noise() -> None:
    """Zero learning rate leaves the start: it must be the same noise for every synthetic source."""
    model = tiny_model("vit")
    found = {}
    for name in ("psaq", "clamp"):
        options = (
            resolve(f"{name}+minmax").infos[0].resolve("quick", {"images": 4, "steps": 1, "rounds": 1, "lr": 1e-9})
        )
        source = resolve(f"{name}+minmax").infos[0].load()(options)
        found[name] = source.images(model, spec=BitSpec(4, 8), scheme="full", calib=None, ctx=FakeContext())
    assert torch.allclose(found["psaq"], found["clamp"], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "real"])
def test_images_depend_on_no_more_than_their_source_says(name: str) -> None:
    """They are shared by all precisions and schemes for which `precision` is the same."""
    info = Catalog.default().sources.get(name)
    small = {"images": 2, "steps": 1, "rounds": 1}
    source = info.load()(info.resolve("quick", {o: v for o, v in small.items() if o in info.options.model_fields}))
    found: dict[str, torch.Tensor] = {}
    for bits, scheme in (("W8A8", "full"), ("W4A8", "full"), ("W4A4", "matmul")):
        spec, model = BitSpec.parse(bits), tiny_model(fitting([info.requires] if info.requires else []))
        own = source.images(model, spec=spec, scheme=scheme, calib=None, ctx=FakeContext())
        assert torch.equal(found.setdefault(source.precision(spec, scheme), own), own)


def test_a_site_without_parameters_is_an_error() -> None:
    model = tiny_model("vit")
    sites = find_sites(trace(model), "full", BitSpec(4, 8))
    with pytest.raises(MissingParametersError, match=r"26 sites|sites have no quantizer"):
        Quantized(model.net, sites, {}, None)


def test_data_free_methods_work_while_data_is_sealed() -> None:
    for name in ("psaq", "clamp", "noise"):
        assert resolve(name).data == "none"
        with sealed_data(name):
            run(name, tiny_model("vit"), "full")
    assert issubclass(DataFreeViolation, RuntimeError)
