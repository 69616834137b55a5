"""What the audit of a method's result finds: results that are not what was asked for, and those that are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, images, tiny_model
from torch import Tensor, nn

from harness.api.contracts import Grid, LayerSummary, VisionModel
from harness.api.spec import BitSpec
from methods.core.audit import Uninspectable, audit
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import OUTPUT, Interceptor
from methods.core.graph.sites import Sites, find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.levels import fault
from methods.core.numerics.observers import MinMax
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized

W4A4, W8A8 = BitSpec(4, 4), BitSpec(8, 8)


def quantized(model: VisionModel, scheme: str = "full", spec: BitSpec = W4A4, kind: type[Quantized] = Quantized) -> Any:
    """Min-max quantization of everything."""
    sites = find_sites(trace(model), scheme, spec)
    activations = activation_quantizers(sites, observe(model, images(), sites, MinMax, 8))
    return kind(model.net, sites, weight_quantizers(model, sites, symmetric=True), activations)


def findings(model: VisionModel, result: Any, scheme: str = "full", spec: BitSpec = W4A4) -> list[str]:
    sampled = audit(model, result, images(2, seed=3), scheme=scheme, spec=spec)[1]
    whole = audit(model, result, images(2, seed=3), scheme=scheme, spec=spec, thorough=True)[1]
    assert bool(sampled) == bool(whole)
    return sampled


class Wrapped:
    """A result whose summary is that of another."""

    def __init__(self, summary: Any, call: Callable[[Tensor], Any], net: nn.Module | None) -> None:
        self.summary = summary
        self._call = call
        if net is not None:
            self.net = net

    def __call__(self, x: Tensor) -> Any:
        return self._call(x)


@pytest.mark.parametrize("spec", [W4A4, W8A8, BitSpec(2, 3)], ids=str)
@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_quantized_as_asked_has_no_findings(network: str, scheme: str, spec: BitSpec) -> None:
    model = tiny_model(network)
    assert findings(model, quantized(model, scheme, spec), scheme, spec) == []


@pytest.mark.parametrize("spec", [W4A4, W8A8], ids=str)
@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_k2_weights_only_is_caught(scheme: str, spec: BitSpec) -> None:
    """FAULTS K2: a plugin that quantizes weights only."""
    model = tiny_model("vit")
    real = quantized(model, scheme, spec)
    found = findings(model, Wrapped(real.summary, real.net, real.net), scheme, spec)
    assert any("the values of site 'patch_embed.proj/conv.0:in0' hold " in text for text in found)
    assert not any("weight" in text for text in found)


@pytest.mark.parametrize("spec", [W4A4, W8A8], ids=str)
def test_k2_the_float_network_with_an_invented_summary_is_caught(spec: BitSpec) -> None:
    """FAULTS K2: a plugin that returns `model.net` with an invented summary."""
    model = tiny_model("vit")
    found = findings(model, Wrapped(quantized(model, spec=spec).summary, model.net, model.net), spec=spec)
    assert any("weight 'blocks.0.attn.qkv.weight' has values that in one output channel hold" in t for t in found)


def test_k2_a_result_without_a_network_cannot_be_checked() -> None:
    """FAULTS K2: neither can what hides its network, or another one than it runs."""
    model = tiny_model("vit")
    summary = quantized(model).summary
    with pytest.raises(Uninspectable, match="no attribute `net`"):
        findings(model, Wrapped(summary, model.net, None))
    with pytest.raises(Uninspectable, match="operations of the float model did not run in its `net`"):
        findings(model, Wrapped(summary, model.net, copy.deepcopy(model.net)))


class Beside(nn.Module):
    """The quantized network runs, and a float copy has the last word."""

    def __init__(self, net: nn.Module, real: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(vars(net))  # its modules, under their names
        self.__dict__["run"], self.__dict__["real"] = [net], [real]

    def forward(self, x: Tensor) -> Tensor:
        self.run[0].forward(x)
        return self.real[0].forward(x)


def beside_the_network(model: VisionModel, made: Any) -> Any:
    floats = copy.deepcopy(model.net)
    return Wrapped(made.summary, lambda x: (made(x), floats(x))[1], made.net)


def inside_of_the_network(model: VisionModel, made: Any) -> Any:
    net = Beside(made.net, copy.deepcopy(model.net))

    def call(x: Tensor) -> Any:
        with Interceptor(net, dict(made.activations)):
            return net(x)

    return Wrapped(made.summary, call, net)


def inside_of_an_operation(model: VisionModel, made: Any) -> Any:
    """A layer is computed with rounded operands, and once more with those of the float model, which count."""
    last = [op.key for op in trace(model).ops if op.key.kind == "linear"][-1]
    weight, bias = model.net.head.weight, model.net.head.bias
    seen = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return made.activations[source, OUTPUT](x)

    def linear(x: Tensor, *rest: Any) -> Tensor:
        nn.functional.linear(x, *rest)
        return nn.functional.linear(seen[-1].mean(1) if seen[-1].dim() > x.dim() else seen[-1], weight, bias)

    source = next(k for k, slot in reversed(list(made.activations)) if slot == OUTPUT and k != last)
    points = {p: q for p, q in made.activations.items() if p != (last, OUTPUT)} | {(source, OUTPUT): keep}
    points[last, OUTPUT] = made.activations[last, OUTPUT]

    def call(x: Tensor) -> Any:
        with Interceptor(made.net, points, instead={last: linear}):
            return made.net(x)

    return Wrapped(made.summary, call, made.net)


def of_low_rank(model: VisionModel, made: Any) -> Any:
    """What rounding takes from a layer is given back by two thin ones in float."""
    lost = model.net.blocks[0].attn.proj.weight - made.net.blocks[0].attn.proj.weight
    left, values, right = torch.linalg.svd(lost)
    thin = (left[:, :1] * values[:1]), right[:1]
    point = next(p for p in made.activations if p[0].module == "blocks.0.attn.proj")
    operation = point[0]

    def linear(x: Tensor, *rest: Any) -> Tensor:
        return nn.functional.linear(x, *rest) + x @ thin[1].T @ thin[0].T

    def call(x: Tensor) -> Any:
        with Interceptor(made.net, dict(made.activations), instead={operation: linear}):
            return made.net(x)

    return Wrapped(made.summary, call, made.net)


@pytest.mark.parametrize(
    "cheat", [inside_of_the_network, inside_of_an_operation, of_low_rank], ids=lambda cheat: cheat.__name__
)
def test_k2_a_path_in_float_beside_the_quantized_one_cannot_be_verified(cheat: Any) -> None:
    """FAULTS K2, further members: all sites hold rounded values, and something else is handed on."""
    model = tiny_model("vit")
    made = quantized(model)
    assert findings(model, made) == []
    with pytest.raises(Uninspectable, match=r"it computes \d+ multiply-accumulates beside those of the float model"):
        audit(model, cheat(model, made), images(3), scheme="full", spec=W4A4)


def test_k2_an_output_that_is_not_the_networks_cannot_be_verified() -> None:
    """FAULTS K2, a further member: the network runs for show. Batches of a method's own are fine."""
    model = tiny_model("vit")
    made = quantized(model)
    for call in (lambda x: made(x) + 0.01, beside_the_network(model, made)):
        with pytest.raises(Uninspectable, match="it hands back something else than its `net` gives"):
            findings(model, Wrapped(made.summary, call, made.net))
    one_by_one = Wrapped(made.summary, lambda x: torch.cat([made(image) for image in x.split(1)]), made.net)
    assert findings(model, one_by_one) == []


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_an_evaluation_in_inference_mode_is_looked_at_as_any_other(scheme: str) -> None:
    """Tensors made there know of no writes to them."""
    model = tiny_model("swin")
    made = quantized(model, scheme)
    graph, known = trace(model), {"scheme": scheme, "spec": W4A4}
    with torch.inference_mode():
        assert audit(model, made, images(3), graph=graph, **known)[1] == []
        assert audit(model, Wrapped(made.summary, made.net, made.net), images(3), graph=graph, **known)[1]


def test_k2_eight_bits_where_four_were_asked_for_are_caught() -> None:
    """FAULTS K2: 8-bit layers at W4A4, said or not."""
    model = tiny_model("vit")
    result = quantized(model, spec=W8A8)
    found = findings(model, result)
    assert "gives weight 'head.weight' 8 bits, where W4A4 was asked for" in found
    assert "gives activation site 'head/linear.0:out' 8 bits, where W4A4 gives 4" in found
    silent = Wrapped(quantized(model).summary, result, result.net)
    assert any("where 4 bits give 16" in text for text in findings(model, silent))


@pytest.mark.parametrize("left", ["blocks.1.mlp.fc1/layer", "head"])
def test_one_layer_left_in_float_is_caught(left: str) -> None:
    model = tiny_model("vit")
    result = quantized(model)
    name = f"{left.partition('/')[0]}.weight"
    with torch.no_grad():
        result.net.get_parameter(name).copy_(model.net.get_parameter(name))
    (found,) = findings(model, result)
    assert found.startswith(f"weight '{name}' has values that in one output channel hold ")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_each_site_left_in_float_is_caught(scheme: str) -> None:
    model = tiny_model("swin")
    result = quantized(model, scheme)
    for site in result.sites.activations[::4]:
        all_of_them = result.activations
        result.activations = {point: q for point, q in all_of_them.items() if point != site.point}
        shown = Wrapped(quantized(model, scheme).summary, result, result.net)
        result.activations = {**all_of_them, site.point: lambda x: x}
        # An output of matmul's products or of a layer is named where it is made or by what receives it.
        bits = site.bits
        found = findings(model, Wrapped(shown.summary, result, result.net), scheme)
        result.activations = all_of_them
        assert any(f"where {bits} bits give {2**bits}" in text or "on no grid" in text for text in found), site


def test_k2_one_channel_of_a_weight_left_in_float_is_caught() -> None:
    """FAULTS K2, a further member: outliers kept in float, in a channel that a sample of channels leaves out."""
    linear = nn.Linear(80, 40).requires_grad_(False)
    model = dataclasses.replace(tiny_model("vit"), net=nn.Sequential(nn.Flatten(), nn.Linear(256, 80), linear).eval())
    model.net.requires_grad_(False)
    for spec in (BitSpec(2, 8), BitSpec(4, 8)):
        result = quantized(model, spec=spec)
        assert findings(model, result, spec=spec) == []
        with torch.no_grad():
            result.net[2].weight[37] = linear.weight[37]
        (found,) = findings(model, result, spec=spec)
        assert found.startswith("weight '2.weight' has values that in one output channel hold ")


def test_weights_with_a_scale_each_are_caught() -> None:
    """A scale for every weight leaves it as it is; groups are seen only if the method says so, and not too small."""
    model = tiny_model("vit")
    result = quantized(model)
    names = [site.parameter for site in result.sites.weights]
    floats = dict(model.net.named_parameters())

    def grouped(size: int) -> None:
        for name in names:
            rows = floats[name].detach().reshape(-1, size)
            step = rows.abs().amax(1, keepdim=True).clamp(min=1e-9) / 7
            result.net.get_parameter(name).data.copy_(((rows / step).round() * step).view_as(floats[name]))

    class Grouped(Wrapped):
        grids = dict.fromkeys(names, Grid(0, 1))

    grouped(1)
    found = findings(model, Grouped(result.summary, result, result.net))
    assert any("has a grid for every 1 of 16 values" in text for text in found)
    found = findings(model, Wrapped(result.summary, result, result.net))
    assert any("in one output channel hold" in text for text in found)
    grouped(16)
    Grouped.grids = dict.fromkeys(names, Grid(0, 16))
    assert findings(model, Grouped(result.summary, result, result.net)) == []


def test_a_scale_for_every_image_is_caught() -> None:
    """Nothing but the evaluation images themselves can give such scales."""
    model = tiny_model("vit")

    class Dynamic(Quantized):
        grids = {"head/linear.0:out": Grid(0)}  # noqa: RUF012 - as a plugin may write it

    found = findings(model, quantized(model, kind=Dynamic))
    assert found == [
        "site 'head/linear.0:out' has a grid for every image, which only the images that it is evaluated on can give"
    ]


def test_a_float_copy_for_larger_batches_is_caught_where_it_runs() -> None:
    model = tiny_model("vit")
    real = quantized(model)
    result = Wrapped(real.summary, lambda x: real(x) if len(x) == 1 else real.net(x), real.net)
    assert audit(model, result, images(1), scheme="full", spec=W4A4)[1] == []
    assert findings(model, result)


def test_a_summary_that_contradicts_the_network_is_caught() -> None:
    model = tiny_model("vit")
    real = quantized(model)
    first, *rest = real.summary.layers

    def said(**changes: Any) -> list[str]:
        return findings(model, Wrapped(dataclasses.replace(real.summary, **changes), real, real.net))

    assert said(layers=tuple(rest))[0].startswith("says nothing of 1 weights that are to be quantized")
    assert "lists 'cls_token' as a quantized weight, though it is not to be quantized" in said(
        layers=(first, *rest, LayerSummary("cls_token", 16, 4))
    )
    assert said(weight_sites=3) == ["counts 3 weights, where there are 10"]
    assert said(activation_sites=3)[0].startswith("counts 3 activation sites, where there are ")
    assert said(float_values=0)[0].startswith("accounts for ")
    assert said(activation_bits={"blocks.7/add.0:out": 4})[0].startswith("names a site 'blocks.7/add.0:out'")


def test_mixed_precision_keeps_its_budget_and_the_widths_that_it_states() -> None:
    model = tiny_model("vit")
    spec = BitSpec.parse("MP4.5")
    sites = find_sites(trace(model), "full", spec)

    def result(widths: dict[str, int]) -> Quantized:
        own: Sites = sites.with_widths(widths, lambda bits: bits)
        activations = activation_quantizers(own, observe(model, images(), own, MinMax, 8))
        return Quantized(model.net, own, weight_quantizers(model, own, symmetric=True), activations)

    names = [site.parameter for site in sites.weights]
    low = result({name: 5 if "fc2" in name else 4 for name in names})
    assert findings(model, low, spec=spec) == []
    high = result(dict.fromkeys(names, 5))
    (found,) = findings(model, high, spec=spec)
    assert found == "gives weights 5.0000 bits on average, above the budget of MP4.5"
    # Five bits under a summary that says four.
    found, *_ = findings(model, Wrapped(low.summary, high, high.net), spec=spec)
    assert "different values" in found


class FakeLinear(nn.Linear):
    """Module surgery: quantizers inside of the module, as most published code has them."""

    quantizer: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.quantizer(x), self.weight, self.bias)


def test_quantizers_inside_of_modules_are_seen() -> None:
    """A result need not be made with `methods.core`: scheme matmul's linear layers by surgery, the rest by a mode."""
    model = tiny_model("vit")
    real = quantized(model, "matmul")
    net = copy.deepcopy(real.net)
    rest = dict(real.activations)
    for name, module in net.named_modules():
        if type(module) is nn.Linear:
            (point,) = [p for p in rest if p[0].module == name]
            module.__class__ = FakeLinear
            module.quantizer = rest.pop(point)

    def call(x: Tensor) -> Any:
        with Interceptor(net, rest):
            return net(x)

    result = Wrapped(real.summary, call, net)
    assert torch.equal(result(images()), real(images()))
    assert findings(model, result, "matmul") == []
    net.head.quantizer = lambda x: x
    (found,) = findings(model, result, "matmul")
    assert found.startswith("the values of site 'head/linear.0:in0' hold ")


class Behind(nn.Module):
    """A quantizer as a module of its own, behind another module."""

    def __init__(self, first: nn.Module, quantizer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.normalized_shape, self.eps = first.weight, first.bias, (16,), first.eps
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(nn.functional.layer_norm(x, (16,), self.weight, self.bias, self.eps))


def test_an_output_that_is_quantized_behind_its_operation_is_seen() -> None:
    model = tiny_model("vit")
    real = quantized(model)
    net = copy.deepcopy(real.net)
    points = dict(real.activations)
    (point,) = [p for p in points if p[0].module == "blocks.0.norm1" and p[1] == OUTPUT]
    net.blocks[0].norm1 = Behind(net.blocks[0].norm1, points.pop(point))

    def call(x: Tensor) -> Any:
        with Interceptor(net, points):
            return net(x)

    assert findings(model, Wrapped(real.summary, call, net)) == []
    net.blocks[0].norm1.quantizer = lambda x: x
    (found,) = findings(model, Wrapped(real.summary, call, net))
    assert found.startswith("the values of site 'blocks.0.norm1/layer_norm.0:out' hold ")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [9, 16, 64, 200, 600, 5000])
def test_rounded_rows_have_no_fault_and_float_rows_have_one(bits: int, length: int) -> None:
    generator = torch.Generator().manual_seed(bits * length)
    x = torch.randn(3, length, generator=generator) * 5 + 1
    for quantizer in (
        Uniform.asymmetric(x.amin(1), x.amax(1), bits, PerChannel(0)),
        Uniform.symmetric(x.amin(1), x.amax(1), bits, PerChannel(0)),
    ):
        assert fault(quantizer(x), bits) is None
        assert fault(quantizer(x) + 0.1234, bits) is None
    assert fault(x, bits) is not None


def test_the_least_of_floats_is_told_from_codes() -> None:
    """One float value among rounded ones, in a row that is too short to count values in."""
    x = Uniform.symmetric(torch.tensor(-3.0), torch.tensor(3.0), 8)(torch.linspace(-3, 3, 192))
    assert fault(x[None], 8) is None
    x[100] += 0.004
    assert fault(x[None], 8) == "hold 192 different values of 192, on no grid of 256 even steps"
    x[100] = torch.nan
    assert fault(x[None], 8) == "are not all finite"
    assert fault(torch.ones(2, 3), 4) is None
