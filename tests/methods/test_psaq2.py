"""PSAQ-ViT V2, our reconstruction: what image steps and student steps do, and what they do not touch."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model

from harness.api.contracts import VisionModel
from harness.api.sealing import sealed_data
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.core.calibrate import weight_quantizers
from methods.core.graph.intercept import tap
from methods.core.graph.layers import LAYERS
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.synthesis.similarity import diversity, entropy, patch_similarity
from methods.end_to_end.psaq2.info import INFO as METHOD
from methods.end_to_end.psaq2.info import Psaq2Options
from methods.end_to_end.psaq2.method import Psaq2, bounded
from methods.end_to_end.psaq2.student import Student
from methods.sources.psaq.info import PsaqSourceOptions
from methods.sources.psaq.source import Psaq

SMALL = {"images": 8, "rounds": 1, "steps": 3, "alternations": 2, "image_steps": 3, "student_steps": 3}


def options(**changes) -> Psaq2Options:
    return Psaq2Options(**{**SMALL, **changes})


def quantize(model: VisionModel, seed: int = 0, bits: str = "W3A8", scheme: str = "full", **changes):
    ctx = FakeContext(seed)
    method = Psaq2(options(**changes))
    with sealed_data("psaq2"):
        quantized = method.quantize(model, spec=BitSpec.parse(bits), scheme=scheme, calib=None, ctx=ctx)
    return quantized, ctx


def student(model: VisionModel, bits: str = "W3A8", scheme: str = "full", **changes) -> Student:
    graph = trace(model)
    return Student(
        model, graph, find_sites(graph, scheme, BitSpec.parse(bits)), options(**changes), FakeContext()
    )  # fmt: skip


# --- image steps ------------------------------------------------------------------------------------------------


def test_bound():
    r = torch.linspace(0, 50, 200)
    for form in ("clip", "saturate"):
        values = bounded(r, 2.0, form)
        assert float(values[0]) == 0.0
        assert float(values.max()) <= 2.0
        assert (values.diff() >= 0).all()
    assert float(bounded(torch.tensor(1.0), 2.0, "clip")) == 1.0
    assert float(bounded(torch.tensor(1.0), 2.0, "saturate")) == pytest.approx(2 * (1 - math.exp(-0.5)))
    far = torch.tensor(3.0, requires_grad=True)
    bounded(far, 2.0, "clip").backward()
    assert float(far.grad) == 0.0  # beyond the bound images gain nothing


def test_diversity_is_the_sum_of_entropies():
    contexts = [torch.randn(4, 2, 9, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    expected = sum(float(entropy(patch_similarity(c, 2), 0.05, 7)) for c in contexts)
    assert float(diversity(contexts, 2, 0.05, 7)) == pytest.approx(expected)


def test_image_steps_raise_the_discrepancy():
    """With it alone as the loss, and without augmentation to hide it."""
    model = tiny_model("vit")
    method = Psaq2(options(image_steps=20, discrepancy_weight=1e4, discrepancy_bound=10, tv_weight=0, jitter=0))
    graph = trace(model)
    own = student(model)
    start = images(8).clamp(*model.pixel_bounds())
    quantized = own.quantized(start)
    after = method._harder(model, graph, own, quantized, start, name="refresh-0", ctx=FakeContext())
    found = [float(own.distance(quantized(x), model.net(x))) for x in (start, after)]
    assert found[1] > 1.1 * found[0]
    low, high = model.pixel_bounds()
    assert (after >= low - 1e-6).all()
    assert (after <= high + 1e-6).all()


def test_first_images_are_psaqs_without_class_loss():
    model = tiny_model("vit")
    found = quantize(model, alternations=0)[1].kept
    source = Psaq(PsaqSourceOptions(images=8, rounds=1, steps=3, class_weight=0.0))
    expected = source.images(model, spec=BitSpec(3, 8), scheme="full", calib=None, ctx=FakeContext())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("distance", ["mae", "task"])
def test_no_task_loss_and_no_pseudo_labels(distance):
    def refuse(*_: object) -> None:
        raise AssertionError("PSAQ-ViT V2 has no class loss")

    model = dataclasses.replace(tiny_model("vit"), sample_targets=refuse, target_loss=refuse)
    if distance == "mae":
        model = dataclasses.replace(model, output_distance=refuse)
    quantize(model, distance=distance)


# --- student steps ----------------------------------------------------------------------------------------------


@pytest.mark.usual(network="vit")
@pytest.mark.usual(scheme="full", trained="all")
@pytest.mark.fast(scheme="full")
@pytest.mark.parametrize("trained", ["weights", "all"])
@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_student_steps_lower_the_discrepancy(network, scheme, trained):
    model = tiny_model(network)
    own = student(model, scheme=scheme, student_steps=40, student_lr=3e-3, trained=trained)
    x = images(8)
    before = float(own.distance(own.quantized(x)(x), model.net(x)))
    own.train(x)
    after = float(own.distance(own.quantized(x)(x), model.net(x)))
    assert after < 0.9 * before
    assert own.losses[0] == pytest.approx(before, rel=1e-3)  # what is trained is what the quantized model computes

    changed = {
        name for name, value in own._net.named_parameters() if not torch.equal(value, model.net.get_parameter(name))
    }
    weights = {site.parameter for site in own._sites.weights}
    assert changed <= weights if trained == "weights" else changed - weights
    assert not any(p.requires_grad or p.grad is not None for p in own._net.parameters())


@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("network", NETWORKS)
def test_rounding_is_straight_through_for_every_weight(network, weights):
    """Also for the largest of a channel, which the symmetric quantizer rounds one code beyond the last and clips."""
    own = student(tiny_model(network), weights=weights)
    quantizers = weight_quantizers(tiny_model(network), own._sites, symmetric=weights == "symmetric")
    for key, site in own._layers.items():  # with a layer that hands on its weight
        weight = own._net.get_parameter(site.parameter).detach().clone().requires_grad_()
        seen: list[torch.Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LAYERS, key.kind, lambda _x, w, seen=seen: seen.append(w) or w)
            rounded = own._rounding(key, site)
        cotangent = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        (rounded(torch.empty(0), weight) * cotangent).sum().backward()
        assert torch.allclose(seen[0], quantizers[site.parameter](weight.detach()), atol=1e-6)
        assert torch.equal(weight.grad, cotangent)


def test_optimiser_state_is_kept_between_rounds():
    own = student(tiny_model("vit"), student_steps=2)
    for _ in range(3):
        own.train(images(8))
    assert {int(state["step"]) for state in own._optimiser.state.values()} == {6}


def test_untrained_student_is_the_float_model_rounded():
    model = tiny_model("vit")
    own = student(model)
    quantized = own.quantized(images(8))
    for name, q in weight_quantizers(model, own._sites, symmetric=True).items():
        assert torch.equal(quantized.net.get_parameter(name), q(model.net.get_parameter(name)))


# --- together ---------------------------------------------------------------------------------------------------


def test_final_ranges_are_those_of_the_final_images():
    model = tiny_model("vit")
    quantized, ctx = quantize(model)
    graph = trace(model)
    first = next(s for s in quantized.sites.activations if s.op.kind == "conv" and s.slot == 0)
    _, found = tap(model.net, ctx.kept, [first.point])
    low, high = quantized.summary.activation_ranges[str(first)]
    assert high - low == pytest.approx(float(found[first.point].max() - found[first.point].min()), rel=0.02)
    assert len(find_blocks(graph)) == 2


def test_float_model_is_not_touched_and_seeds_decide():
    model = tiny_model("vit")
    before = copy.deepcopy(model.net.state_dict())
    results = [quantize(model, seed)[0](images(3, seed=5)) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())


def test_counters_and_records():
    _, ctx = quantize(tiny_model("vit"))
    assert ctx.counters["student_steps"] == 6
    assert ctx.counters["synthesis_steps"] == 3 + 2 * 3
    assert len(ctx.found["student_loss"]["values"]) == 6
    assert ctx.kept.shape == (8, 1, 16, 16)
    assert set(ctx.stages) == {"refresh", "train", "calibrate"}


def test_every_option_that_is_not_psaqs_says_that_it_is_ours():
    shared = set(PsaqSourceOptions.model_fields)
    for name, field in Psaq2Options.model_fields.items():
        if name not in shared and name not in ("weights", "ranges"):
            assert "ours" in field.description, name


def test_what_the_plugin_says():
    catalog = Catalog.default()
    info = catalog.methods.get("psaq2")
    assert info is METHOD
    assert (info.data, info.origin, info.trains, info.mixed) == ("none", "reconstruction", "weights", False)
    assert "our reconstruction" in info.summary
    for preset in ("quick", "default", "paper"):
        info.check_ablations(preset, {})
    assert "class_weight" not in info.options.model_fields
