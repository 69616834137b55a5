"""Transposed convolutions with every method: their output channels are the weight's second axis."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_conformance import run
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import CLASSES, SHAPE, FakeContext, images
from torch import Tensor, nn
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import SCHEMES, BitSpec
from methods.calibrators.adalog.errors import InputErrors, WeightErrors
from methods.calibrators.adalog.factors import Factor, LogFactor, UniformFactor
from methods.calibrators.adalog.patches import matrix, rows
from methods.calibrators.evolq.calibrator import MomentMatched, searched_layers
from methods.catalog import CALIBRATORS, METHODS
from methods.core.graph.segments import cut
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.layer_search.metrics import by_maps, hessian
from methods.core.layer_search.operations import Convolution
from methods.core.numerics.functions import GELU_MINIMUM
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Uniform, weight_quantizer
from methods.core.reconstruction.ranges import least_error_quantizer
from methods.core.reconstruction.rounding import SoftRounding
from methods.core.reconstruction.units import LayerUnit, SegmentUnit
from methods.core.reconstruction.walk import Walk
from methods.core.reparameterization.fold import find_pairs
from methods.end_to_end.psaq2.info import Psaq2Options
from methods.end_to_end.psaq2.method import Psaq2
from tasks.models.attention import unfused

NAMES = [*METHODS, *(f"noise+{calibrator}" for calibrator in CALIBRATORS)]
IN, OUT = 4, 6
FACTORS = torch.tensor([1.0, 3.0, 0.3, 10.0, 0.5, 2.0])  # so that no output channel is like another
UP = partial(nn.ConvTranspose2d, IN, OUT)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "mask": partial(UP, 2, stride=2),  # as in mmdet's mask heads
    "wide": partial(UP, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), dilation=(1, 2), bias=False),
    "grouped": partial(UP, 3, stride=2, padding=1, groups=2),
    "plain": partial(UP, 3, padding=1),  # the same as a convolution with the mirrored kernel
}


class Masks(nn.Module):
    """A transformer block, then a LayerNorm with a linear layer, and a mask head on the patches."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.body = VisionTransformer(
            img_size=16, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=1, num_heads=2
        )
        self.neck = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8))
        self.conv = nn.Conv2d(8, IN, 3, padding=1)
        self.up = up
        self.out = nn.Conv2d(OUT, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.neck(self.body.forward_features(x)[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))
        return self.out(functional.relu(self.up(functional.relu(self.conv(patches)))))


def masks(up: str) -> VisionModel:
    torch.manual_seed(0)
    net = unfused(Masks(LAYERS[up]())).eval().requires_grad_(False)
    net.up.weight.mul_(FACTORS[: net.up.weight.shape[1], None, None])
    if net.up.bias is not None:
        net.up.bias.zero_()  # or ReLU shuts the smallest one off

    def distance(quantized: Tensor, reference: Tensor) -> Tensor:
        return (quantized - reference).square().mean()

    def targets(n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(CLASSES, (n, *net(torch.zeros(1, *SHAPE)).shape[2:]), generator=generator)

    return VisionModel(
        "tiny", "segmentation", net, SHAPE, (0.3,), (0.4,), CLASSES, targets, functional.cross_entropy, distance
    )


def grid(quantizer: Any) -> Uniform:
    """What a weight is rounded to, under what a method makes of it."""
    return quantizer if isinstance(quantizer, Uniform) else grid(quantizer.base)


def error(model: VisionModel, quantized: Any) -> float:
    """Of the quantized network's output, relative to the float one."""
    x = images(3, seed=5).clamp(*model.pixel_bounds())  # what synthetic images look like
    reference = model.net(x)
    with torch.no_grad():
        output = quantized(x)
    assert output.shape == reference.shape
    assert torch.isfinite(output).all()
    return float((output - reference).norm() / reference.norm())


def check_channels(name: str, model: VisionModel, quantized: Any, bits: int) -> None:
    """Every output channel of the transposed convolution, one by one, is the float one on a grid of its own."""
    rounded, weight = quantized.net.up.weight, model.net.up.weight
    base = grid(quantized.weights["up.weight"])
    trained = name in {"psaq2", "noise+isvit", "noise+glfq"}  # weights are more than rounded
    assert base.scale.shape == base.zero_point.shape == (weight.shape[1],)
    for i in range(weight.shape[1]):
        step, zero = float(base.scale[i]), int(base.zero_point[i])
        channel, exact = rounded[:, i], weight[:, i]
        assert len(channel.unique()) <= 2**bits
        if isinstance(base, MomentMatched):
            assert float(channel.std()) == pytest.approx(float(exact.std()), rel=1e-4)
            assert float(channel.mean()) == pytest.approx(float(exact.mean()), abs=1e-5)
            continue
        codes = channel / step + zero
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert base.qmin <= int(codes.round().min()) <= int(codes.round().max()) <= base.qmax
        low, high = (base.qmin - zero) * step, (base.qmax - zero) * step
        if not trained:  # to the nearest, or the other way
            assert ((channel - exact.clamp(low, high)).abs() <= step * 1.001).all()
        # The range is the channel's own.
        assert 0.2 * float(exact.abs().max()) <= max(-low, high) <= 2.5 * float(exact.abs().max())


@pytest.mark.fast(name=["clamp", "psaq2", "noise+minmax", "noise+repq"], scheme="full")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method(name: str, scheme: str) -> None:
    model = masks("mask")
    fine, _ = run(name, model, scheme, "W8A8")
    assert 0 < error(model, fine) < 0.1
    coarse, _ = run(name, model, scheme, "W4A6")
    assert error(model, coarse) > 0
    for quantized, bits in ((fine, 8), (coarse, 4)):
        check_channels(name, model, quantized, bits)


def mirrored(up: nn.ConvTranspose2d) -> nn.Conv2d:
    """The convolution that computes the same."""
    conv = nn.Conv2d(IN, OUT, 3, padding=1).requires_grad_(False)
    conv.load_state_dict({"weight": up.weight.transpose(0, 1).flip(2, 3), "bias": up.bias})
    return conv


# They round a transposed convolution to the nearest, and say so.
UNCOMPENSATED = {"noise+gptq", "noise+microscopiq"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNCOMPENSATED])
def test_every_method_treats_it_as_the_convolution_that_it_is(name: str) -> None:
    """At stride 1 there is one, and what is found for it is the reference."""
    model = masks("plain")
    reference = dataclasses.replace(model, net=copy.deepcopy(model.net))
    reference.net.up = mirrored(model.net.up)
    x = images(3)
    torch.testing.assert_close(model.net(x), reference.net(x))
    (found, ctx), (expected, reference_ctx) = (run(name, each, "matmul", "W4A6") for each in (model, reference))
    one, other = grid(found.weights["up.weight"]), grid(expected.weights["up.weight"])
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-3, atol=0)
    torch.testing.assert_close(one.zero_point, other.zero_point)
    got = found.net.up.weight.transpose(0, 1).flip(2, 3)
    torch.testing.assert_close(got, expected.net.up.weight, rtol=1e-3, atol=1e-6)
    assert error(reference, found) == pytest.approx(error(reference, expected), rel=1e-3)
    for unit in [key for key in ctx.found if key.startswith("reconstruction")]:
        for when in ("before", "after"):
            assert ctx.found[unit][when] == pytest.approx(reference_ctx.found[unit][when], rel=1e-2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("up", ["wide", "grouped"])
@pytest.mark.parametrize("name", NAMES)
def test_other_shapes(name: str, up: str) -> None:
    model = masks(up)
    quantized, _ = run(name, model, "matmul", "W8A8")
    assert 0 < error(model, quantized) < 0.1
    check_channels(name, model, quantized, 8)


# --- a part of the network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_method_leaves_what_is_outside_the_part_alone(name: str) -> None:
    model = dataclasses.replace(masks("mask"), part="body")
    quantized, _ = run(name, model, "matmul", "W8A8")
    assert 0 < error(model, quantized) < 0.1
    assert {layer.name for layer in quantized.summary.layers} == {
        f"{path}.weight"
        for path, m in model.net.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and path.startswith("body.") and "head" not in path
    }
    for path, parameter in quantized.net.named_parameters():
        assert path.startswith("body.") or torch.equal(parameter, model.net.get_parameter(path))
    assert all(site.startswith("body") for site in quantized.summary.activation_ranges)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("trained", ["weights", "all"])
def test_psaq2_trains_the_part_alone(trained: str, scheme: str) -> None:
    model = dataclasses.replace(masks("mask"), part="body")
    options = Psaq2Options(images=4, rounds=1, steps=2, alternations=1, image_steps=1, student_steps=2, trained=trained)
    quantized = Psaq2(options).quantize(model, spec=BitSpec(4, 8), scheme=scheme, calib=None, ctx=FakeContext())
    rounded = {layer.name for layer in quantized.summary.layers}
    changed = {n for n, p in quantized.net.named_parameters() if not torch.equal(p, model.net.get_parameter(n))}
    assert rounded <= changed
    assert (changed == rounded) == (trained == "weights")
    assert all(name.startswith("body.") for name in changed)


@pytest.mark.parametrize(("part", "pairs"), [(None, 3), ("body", 2), ("neck", 1), ("neck.0", 0), ("neck.1", 0)])
def test_what_is_folded_or_searched_lies_in_the_part(part: str | None, pairs: int) -> None:
    """A LayerNorm and its layers both, since folding changes both."""
    model = dataclasses.replace(masks("mask"), part=part)
    graph = trace(model)
    assert len(find_pairs(model.net, graph, images(2))) == pairs
    (block,) = find_blocks(graph)
    assert len(searched_layers(graph, block, whole=True)) == (4 if part in {None, "body"} else 0)


# --- pieces ---------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(errors: Tensor) -> Tensor:
    """Errors less what all candidates share."""
    return (errors - errors[:1]).double()


@pytest.mark.parametrize("up", [name for name in LAYERS if name != "grouped"])
def test_adalog_goes_by_the_error_of_the_output(up: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[up]().requires_grad_(False)
    arguments = (None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
    x, weight = functional.gelu(2 * normal(2, IN, 5, 4)), layer.weight

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, weight, *arguments)

    found = rows("conv_transpose", x, weight, *arguments)
    assert found is not None
    flat = matrix("conv_transpose", weight)
    exact = compute(x, weight)
    torch.testing.assert_close(found.values @ flat.T, exact.movedim(1, -1).flatten(0, 2))

    inputs: Factor = LogFactor.activation(x, 3, 7, GELU_MINIMUM, 1)  # 0 has no code of its own
    weights = UniformFactor.of(flat, 3, PerChannel(0), 1)
    base, scale = torch.tensor([[20.0], [37.0], [60.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    candidates = inputs.rounded(x, base, scale)
    assert (inputs.rounded(torch.zeros(1), base, scale) != 0).all()  # so that it matters what is not a value
    rounded = weight_quantizer(weight, 3, symmetric=False, axis=1)(weight)
    errors = InputErrors(inputs, found.values, flat, matrix("conv_transpose", rounded), found.present)(base, scale)
    expected = torch.stack([(compute(each, rounded) - exact).square().sum() for each in candidates])[:, None]
    torch.testing.assert_close(spread(errors), spread(expected), rtol=1e-3, atol=1e-3)

    inputs.parameters = base[0], scale[0]
    quantizer = inputs.quantizer()
    steps, zero = weights.parameters[0] * torch.tensor([[0.6], [1.0], [1.5]]), weights.parameters[1].expand(3, -1)
    values = WeightErrors(weights, flat, found.values, quantizer(found.values), found.present)(steps, zero)
    outputs = [
        compute(quantizer(x), Uniform(step, zero[0].int(), 0, 7, PerChannel(1))(weight)) - exact for step in steps
    ]  # fmt: skip
    expected = torch.stack([each.square().sum((0, 2, 3)) for each in outputs])
    torch.testing.assert_close(spread(values), spread(expected), rtol=1e-3, atol=1e-3)


def test_adalog_has_no_product_for_groups() -> None:
    assert rows("conv_transpose", normal(1, 4, 3, 3), normal(4, 2, 2, 2), None, 2, 0, 0, 2) is None


def test_ptq4vits_groups_are_channels_in_turns() -> None:
    """As the channels of a grouped transposed convolution are that share a step."""
    layer = LAYERS["grouped"]().requires_grad_(False)
    x, weight = normal(2, IN, 3, 3), layer.weight
    changed = weight.clone()
    changed[:, 1] += 1.0  # the second channel of both groups
    width = weight.shape[1]
    operation = Convolution((None, 2, 1, 0, 2), function=functional.conv_transpose2d)
    outputs = operation.candidates(1, torch.stack([weight, changed]), (x, weight))
    reference = operation.output((x, weight))
    scores = hessian(outputs.clone(), reference, None, by_maps(width))
    assert (scores[1] > 0).tolist() == [False, True, False]
    expected = (outputs[1] - reference).square().sum((0, 2, 3))
    torch.testing.assert_close(scores[1], torch.stack([expected[i::width].sum() for i in range(width)]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_ranges_and_rounding_of_a_transposed_weight(symmetric: bool) -> None:
    weight = normal(IN, OUT, 2, 3) * FACTORS[:, None, None]
    first = weight.transpose(0, 1)
    options = {"symmetric": symmetric, "norm": 2.4}
    q, reference = least_error_quantizer(weight, 3, axis=1, **options), least_error_quantizer(first, 3, **options)
    torch.testing.assert_close(q.scale, reference.scale)
    assert torch.equal(q.zero_point, reference.zero_point)
    for one, other in ((q(weight), reference(first)), (matched(q)(weight), matched(reference)(first))):
        torch.testing.assert_close(one.transpose(0, 1), other)
    learned, expected = SoftRounding(weight, q), SoftRounding(first, reference)
    learned.v.data += normal(*weight.shape, seed=1)
    expected.v.data += normal(*weight.shape, seed=1).transpose(0, 1)
    torch.testing.assert_close(learned.soft().transpose(0, 1), expected.soft())
    torch.testing.assert_close(learned.hard()(weight).transpose(0, 1), expected.hard()(first))


def test_channels_of_masks() -> None:
    """The output may be maps (n, channels, h, w) or, of several boxes per image, (n, boxes, channels, h, w)."""
    model = masks("mask")
    graph, x = trace(model), images(2)
    blocks = find_blocks(graph)
    walks = [Walk(model.net, blocks, x, 2) for _ in range(2)]
    *_, tail = cut(graph, blocks, find_sites(graph, "full", BitSpec(8, 8)).weights)
    unit = SegmentUnit(*walks, tail, graph, {})
    assert unit.axis(normal(2, 3, 4, 4)) == 1
    assert unit.axis(normal(2, 5, 3, 4, 4)) == 2
    assert unit.axis(normal(2, 7, 3)) == -1
    for site in tail.layers:
        if site.parameter == "up.weight":
            layer = LayerUnit(unit, *walks, site, graph=graph, transforms={})
            torch.testing.assert_close(layer.outputs(layer.inputs, walks[0].numbers), layer.targets)
            assert layer.targets[0].shape == (2, 1, OUT, 8, 8)
            assert layer.axis(layer.targets[0]) == 2


def matched(q: Uniform) -> MomentMatched:
    return MomentMatched(q.scale, q.zero_point, q.qmin, q.qmax, q.granularity)
