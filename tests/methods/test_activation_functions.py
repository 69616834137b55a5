"""Which activation function makes a tensor, told by its values however it is written, and what methods do behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from arithmetic_networks import SHAPE, Between, Maps
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import CLASSES, FakeContext, images, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.adalog.calibrator import AdaLogSearch
from methods.calibrators.adalog.info import AdalogOptions
from methods.calibrators.adalog.quantizer import AdaLog
from methods.calibrators.mptq.calibrator import Mptq
from methods.calibrators.mptq.info import MptqOptions
from methods.calibrators.uqvit.calibrator import _others
from methods.core.graph.intercept import OUTPUT, OpKey, tap
from methods.core.graph.segments import cut
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace, trace_net
from methods.core.layer_search.calibrator import StepSearch
from methods.core.layer_search.options import SearchOptions
from methods.core.layer_search.quantizers import TwinGelu
from methods.core.numerics.functions import _KNOWN, GELU_MINIMUM, ActivationFunction
from methods.core.numerics.quantizers import Uniform
from methods.core.reconstruction.units import LayerUnit, SegmentUnit
from methods.core.reconstruction.walk import Walk
from tasks.models.attention import unfused

QUICK = 0.16361018963635357  # minus the least value of x sigmoid(1.702 x)
W4A4 = BitSpec(4, 4)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def with_activation(act: Callable[..., nn.Module]) -> VisionModel:
    """The tiny ViT, its weights enlarged, with another activation function."""
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, act_layer=act
    )
    net = unfused(net.eval()).requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)
    return replace(tiny_model("vit"), net=net)


# --- which function -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _KNOWN)
def test_depths_are_those_of_the_functions(name):
    x = torch.linspace(-30, 30, 6_000_001, dtype=torch.float64)
    # GELU's is the reference code's; its tanh form has the same, which is near enough for one range.
    near = {"gelu-tanh": 1e-4, "gelu": 1e-7}.get(name, 1e-10)
    assert -float(_KNOWN[name][0](x).min()) == pytest.approx(_KNOWN[name][1], abs=near)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], str, float]] = {
    "gelu": (functional.gelu, "gelu", GELU_MINIMUM),
    "gelu by tanh": (lambda x: functional.gelu(x, approximate="tanh"), "gelu-tanh", GELU_MINIMUM),
    "gelu of what a number scaled": (lambda x: functional.gelu(x * 0.5), "gelu", GELU_MINIMUM),
    "gelu by erf": (lambda x: 0.5 * x * (1 + torch.erf(x / 1.41421)), "gelu", GELU_MINIMUM),
    "gelu by tanh, written out": (
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu-tanh",
        GELU_MINIMUM,
    ),
    "quick gelu": (quick_gelu, "quick-gelu", QUICK),
    "quick gelu, the other way round": (lambda x: torch.sigmoid(x * 1.702) * x, "quick-gelu", QUICK),
    "quick gelu in place": (lambda x: (1.702 * x).sigmoid_().mul_(x), "quick-gelu", QUICK),
    "silu, written out": (lambda x: x / (1 + torch.exp(-x)), "silu", 0.2784645427610738),
    "mish, written out": (lambda x: x * torch.tanh(functional.softplus(x)), "mish", 0.3088434130172505),
    "hardswish, written out": (lambda x: x * functional.relu6(x + 3) / 6, "hardswish", 0.375),
    "scaled by a number": (lambda x: functional.silu(x) * 1.7881, "silu", 1.7881 * 0.2784645427610738),
    "moved": (lambda x: functional.pad(functional.gelu(x).roll(1, 2), (1, -1)).mT, "gelu", GELU_MINIMUM),
    "relu": (functional.relu, "relu", 0.0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_known_function_is_told_however_it_is_written(form):
    function, name, depth = FORMS[form]
    found = trace_net(Between(function), SHAPE).function(OpKey("last", "linear", 0), 0)
    assert found is not None
    assert (found.name, found.depth) == (name, pytest.approx(depth, rel=1e-6))
    if form not in {"moved", "gelu of what a number scaled"}:
        x = torch.linspace(-5, 5, 1001)
        torch.testing.assert_close(found(x), function(x), atol=1e-5, rtol=1e-5)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky relu": lambda x: functional.leaky_relu(x, 0.01),
    "elu": functional.elu,
    "tanh": torch.tanh,
    "another sigmoid": lambda x: x * torch.sigmoid(1.5 * x),
    "gelu and a number": lambda x: functional.gelu(x) - 0.1,
    "minus gelu": lambda x: -functional.gelu(x),
    "padded with another number": lambda x: functional.pad(functional.gelu(x), (1, -1), value=-3.0),
    "gelu by half a gate": lambda x: functional.gelu(x) * torch.sigmoid(x.flip(1)),
    "gelu and what went in": lambda x: functional.gelu(x) + x,
    "gelu of mean and rest": lambda x: functional.gelu(x) * x.mean(1, keepdim=True),
    "nothing": lambda x: x,
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_no_known_function_is_none(form):
    assert trace_net(Between(OTHERS[form]), SHAPE).function(OpKey("last", "linear", 0), 0) is None


def test_a_function_by_channel_is_none():
    for between in (lambda net, x: functional.gelu(x) * net.gain, lambda net, x: functional.prelu(x, net.gain)):
        graph = trace_net(Between(between, own=True), SHAPE)
        assert graph.function(OpKey("last", "linear", 0), 0) is None


def test_a_layer_that_runs_behind_two_functions_has_none():
    def twice(second: Callable[[Tensor], Tensor]) -> Any:
        between = Between(lambda net, x: net.inner(second(net.inner(functional.gelu(x)))), own=True)
        return trace_net(between, SHAPE).function(OpKey("inner", "linear", 0), 0)

    assert twice(functional.gelu) == ActivationFunction("gelu")
    assert twice(quick_gelu) is None
    assert twice(lambda x: x) is None


def test_convolutions_too():
    graph = trace_net(Maps(lambda x: functional.pad(quick_gelu(x), (1, 1, 1, 1))), SHAPE)
    assert graph.function(OpKey("last", "conv", 0), 0) == ActivationFunction("quick-gelu")
    assert graph.function(OpKey("", "mul", 0), OUTPUT) == ActivationFunction("quick-gelu")


# --- what methods do behind it --------------------------------------------------------------------------------------


def behind(model: VisionModel, method: str, factor: float, scheme: str) -> list[Any]:
    """Quantizers of what the MLPs' activation functions give, for images of a certain contrast."""
    calibrator: Any = {
        "ptq4vit": StepSearch(SearchOptions(metric="cosine", candidates=4, rounds=1)),
        "adalog": AdaLogSearch(AdalogOptions(rounds=1, steps=0, tokens=32)),
        "mptq": Mptq(MptqOptions(smooth=False)),
    }[method]
    made = calibrator.calibrate(model, images() * factor, spec=W4A4, scheme=scheme, ctx=FakeContext())
    found = [q for (key, slot), q in made.activations.items() if slot == 0 and key.module.endswith("fc2")]
    return found or [q for (key, slot), q in made.activations.items() if slot == OUTPUT and ".act" in key.module]


METHODS = [("ptq4vit", "matmul"), ("ptq4vit", "full"), ("adalog", "matmul"), ("mptq", "matmul"), ("mptq", "full")]
DEPTHS = {nn.GELU: GELU_MINIMUM, QuickGELU: QUICK, nn.SiLU: 0.2784645427610738, nn.Hardswish: 0.375}


@pytest.mark.parametrize("act", DEPTHS)
@pytest.mark.parametrize(("method", "scheme"), METHODS)
def test_the_negative_range_is_the_functions_whatever_the_images(method, scheme, act):
    for factor in (1.0, 0.02):
        found = behind(with_activation(act), method, factor, scheme)
        assert [type(q) for q in found] == [AdaLog if method == "adalog" else TwinGelu] * 2
        steps = 8 / 7 if method == "mptq" else 1  # steps from code 0 to the least, of which one is beyond the range
        assert [float(q.low) for q in found] == pytest.approx([-DEPTHS[act] * steps] * 2, rel=1e-5)


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.ELU, nn.Tanh])
@pytest.mark.parametrize(("method", "scheme"), METHODS)
def test_behind_any_other_function_the_quantizer_is_uniform_whatever_the_images(method, scheme, act):
    for factor in (1.0, 0.02):
        found = behind(with_activation(act), method, factor, scheme)
        assert [type(q) for q in found] == [Uniform] * 2


@pytest.mark.parametrize("act", [nn.GELU, QuickGELU])
def test_a_layer_is_reconstructed_with_the_function_behind_it(act):
    model, x = with_activation(act), images()
    graph = trace(model)
    blocks = find_blocks(graph)
    walks = Walk(model.net, blocks, x, 4), Walk(model.net, blocks, x, 4)
    sites = find_sites(graph, "matmul", W4A4)
    units = {}
    for segment in cut(graph, blocks, sites.weights):
        whole = SegmentUnit(*walks, segment, graph, {})
        for site in segment.layers:
            units[site.parameter] = LayerUnit(whole, *walks, site, graph=graph, transforms={})
    points = [(OpKey(f"blocks.0.mlp.{name}", "linear", 0), slot) for name, slot in (("fc1", OUTPUT), ("fc2", 0))]
    seen = tap(model.net, x, points)[1]
    for point, value in zip(("fc1", "before"), (seen[points[1]], seen[points[0]]), strict=True):
        close = torch.allclose(units["blocks.0.mlp.fc1.weight"].targets[0].flatten(0, 1), value, atol=1e-5)
        assert close == (point == "fc1")


@pytest.mark.parametrize("act", [nn.GELU, QuickGELU])
def test_channels_behind_a_function_are_balanced_in_scheme_full_too(act):
    model = with_activation(act)
    graph = trace(model)
    found = _others(model.net, graph, find_sites(graph, "full", W4A4))
    assert {"blocks.0.mlp.fc2.weight", "blocks.1.mlp.fc2.weight"} <= found.keys()


@pytest.mark.parametrize("choose", [torch.minimum, torch.maximum, torch.fmin, torch.fmax])
def test_what_is_chosen_between_a_function_and_a_number_is_none(choose):
    graph = trace_net(Between(lambda x: choose(functional.gelu(x), torch.tensor(-9.0))), SHAPE)
    assert graph.ops[-1].given == (None,)
