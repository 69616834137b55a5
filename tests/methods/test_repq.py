"""RepQ-ViT against its formulas, written out plainly."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from tiny_networks import NETWORKS, SHAPE, FakeContext, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.calibrators.repq.info import INFO as CALIBRATOR
from methods.core.graph.intercept import OUTPUT, tap
from methods.core.graph.trace import trace, trace_net
from methods.core.numerics.granularity import PER_TENSOR, PerChannel
from methods.core.numerics.logarithmic import FractionalZero, LogSqrt2, UnclippedZero
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Uniform
from methods.core.reparameterization.calibrator import RepQ, merge
from methods.core.reparameterization.fold import find_pairs, fold
from methods.core.reparameterization.migration import migrated
from methods.core.reparameterization.options import RepqOptions
from tasks.models.attention import unfused

PERCENTILES = (0.999, 0.9999, 0.99999)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed values, so that the percentiles differ and clipping pays."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) ** 3


def network(name: str, seed: int = 0) -> nn.Module:
    """A tiny network whose LayerNorms have scales and shifts worth the name."""
    net = tiny_model(name).net
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 3 + 0.2)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 2)
    return net


def pairs_of(net: nn.Module):
    return find_pairs(net, trace_net(net, SHAPE), images(1))


# --- percentile ranges ----------------------------------------------------------------------------------------------


def explicit_percentile(row: np.ndarray, bits: int) -> tuple[float, float]:
    """Q4 for one channel: step and zero point of the percentile with the least mean squared error."""
    best = (math.inf, 0.0, 0.0)
    for p in PERCENTILES:
        upper, lower = np.quantile(row, p), np.quantile(row, 1 - p)
        scale = (upper - lower) / (2**bits - 1)
        zero = np.round(-lower / scale)
        rounded = (np.clip(np.round(row / scale) + zero, 0, 2**bits - 1) - zero) * scale
        error = np.mean((rounded - row) ** 2)
        if error < best[0]:
            best = (error, scale, zero)
    return best[1], best[2]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("axis", [0, 2])
def test_percentile_ranges_channel_by_channel(bits, axis):
    x = values(7, 900, 5) + torch.linspace(0, 8, 5)  # some channels do not contain 0
    found = percentile_quantizer(x, bits, PERCENTILES, granularity=PER_TENSOR if axis is None else PerChannel(axis))
    assert found.axis == axis
    for c in range(x.shape[axis]):
        scale, zero = explicit_percentile(x.select(axis, c).double().numpy().ravel(), bits)
        assert float(found.scale[c]) == pytest.approx(scale, rel=1e-3)
        assert int(found.zero_point[c]) == pytest.approx(zero, abs=1)


def test_percentile_of_a_whole_tensor_and_in_chunks(monkeypatch):
    x = values(40, 500)
    scale, zero = explicit_percentile(x.double().numpy().ravel(), 4)
    found = percentile_quantizer(x, 4, PERCENTILES)
    assert found.axis is None
    assert float(found.scale) == pytest.approx(scale, rel=1e-4)
    assert int(found.zero_point) == zero
    monkeypatch.setattr("methods.core.numerics.percentile._CHUNK", 1000)
    assert torch.equal(percentile_quantizer(x, 4, PERCENTILES).scale, found.scale)


def test_a_wider_range_contains_zero_and_constant_channels_survive():
    x = values(1000).abs() + 3
    widened = percentile_quantizer(x, 4, PERCENTILES, widen=True)
    assert float(widened.low) == 0.0
    constant = torch.tensor([[5.0] * 9, [0.0] * 9, [-7e4] * 9])
    assert torch.allclose(
        percentile_quantizer(constant, 4, PERCENTILES, granularity=PerChannel(0))(constant), constant, rtol=1e-4
    )


# --- softmax --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("extra", [True, False])
def test_log_sqrt2_codes_equal_the_explicit_shift_form(bits, extra):
    x = torch.softmax(values(6, 50, 30).clamp(-9, 9), -1)
    quantizer = LogSqrt2.of(x, bits, PERCENTILES, extra=extra)
    delta, got = float(quantizer.scale), quantizer(x).flatten().tolist()
    last = 2**bits if extra else 2**bits - 1  # first code that stands for 0
    for value, rounded in zip(x.flatten().tolist(), got, strict=True):
        q = max(0, round(-2 * math.log2(value / delta)))
        expected = 0.0 if q >= last else delta * 2.0 ** -math.ceil(q / 2) * (1 + (math.sqrt(2) - 1) * (q % 2))
        assert rounded == pytest.approx(expected, rel=1e-5)
    assert len(set(got)) <= 2**bits + extra
    assert float(quantizer(torch.zeros(1))) == 0.0


def test_log_sqrt2_scale_is_the_best_percentile():
    x = torch.softmax(values(40, 20, 30) * 3, -1)
    errors = []
    for p in PERCENTILES:
        delta = torch.quantile(x.flatten(), p)
        errors.append(float((LogSqrt2(delta, 15)(x) - x).square().mean()))
    quantizer = LogSqrt2.of(x, 4, PERCENTILES, extra=False)
    assert float((quantizer(x) - x).square().mean()) == pytest.approx(min(errors), rel=1e-5)


# --- reparameterisation ---------------------------------------------------------------------------------------------


def test_pairs_are_the_papers_in_both_networks():
    def names(net):
        return [(pair.norm.module, *(key.module for key in pair.linears)) for pair in pairs_of(net)]

    blocks = [f"blocks.{i}" for i in range(2)]
    inside = (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"))
    assert names(network("vit")) == [(f"{b}.{n}", f"{b}.{m}") for b in blocks for n, m in inside]  # no classifier
    found = names(network("swin"))
    assert ("layers.1.downsample.norm", "layers.1.downsample.reduction") in found
    assert ("layers.0.blocks.1.norm1", "layers.0.blocks.1.attn.qkv") in found  # through shifted windows
    assert len(found) == 9


def test_padded_windows_and_shared_norms_are_left_alone():
    torch.manual_seed(0)
    swin = SwinTransformer(16, 2, 1, 5, embed_dim=8, depths=(2,), num_heads=(1,), window_size=3).eval()
    padded = unfused(swin).requires_grad_(False)  # 8 x 8 patches in windows of 3
    assert [pair.norm.module for pair in pairs_of(padded)] == [f"layers.0.blocks.{i}.norm2" for i in range(2)]

    class Gated(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.stem, self.norm, self.fc = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)
            self.how = how

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.stem(x[:, 0]))
            if self.how == "residual":
                return self.fc(y) + y
            if self.how == "returned":
                return self.fc(y), y.mT
            if self.how == "twice":
                return self.fc(self.fc(y))
            return self.fc({"scaled": y * 2, "transposed": y.mT, "plain": y.roll(3, 1)}[self.how])

    for how in ("residual", "returned", "twice", "scaled", "transposed"):
        assert pairs_of(Gated(how).requires_grad_(False)) == [], how
    assert len(pairs_of(Gated("plain").requires_grad_(False))) == 1


class PlusOne(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Unbiased(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight)


class Gain(nn.Module):
    """Scales by what is a LayerNorm's."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norms = [norm]  # no module of its own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.norms[0].weight


def entangle(net: nn.Module, how: str) -> None:
    """Parameters of a LayerNorm, or of the layer behind it, are not used by that alone, or not as they are."""
    a, b = net.blocks
    if how == "norms":
        b.norm1.weight, b.norm1.bias = a.norm1.weight, a.norm1.bias
    elif how == "norms' shifts":
        b.norm1.bias = a.norm1.bias
    elif how == "norms' memory":
        b.norm1.weight = nn.Parameter(a.norm1.weight.data, requires_grad=False)
    elif how == "part of the memory":
        both = torch.cat([a.norm1.weight, b.norm1.bias[:4]])
        a.norm1.weight = nn.Parameter(both[:-4], requires_grad=False)
        b.norm1.bias = nn.Parameter(both[4:], requires_grad=False)
    elif how == "layers' biases":
        b.mlp.fc1.bias = a.mlp.fc1.bias
    elif how == "used elsewhere":
        b.attn.proj = nn.Sequential(b.attn.proj, Gain(a.norm1))
    elif how == "weight plus one":
        a.norm1.__class__ = PlusOne
    else:
        a.mlp.fc1.bias, a.mlp.fc1.__class__ = None, Unbiased


@pytest.mark.parametrize(
    ("how", "left"),
    {
        "norms": 2,
        "norms' shifts": 2,
        "norms' memory": 2,
        "part of the memory": 2,
        "layers' biases": 2,
        "used elsewhere": 3,
        "weight plus one": 3,
        "a bias that would not be used": 3,
    }.items(),
)
def test_the_float_network_stays_the_same_whatever_shares_its_parameters(how, left):
    model = dataclasses.replace(tiny_model("vit"), net=network("vit"))
    entangle(model.net, how)
    x, ctx = images(4, 5), FakeContext()
    net, _ = RepQ(RepqOptions()).folded(model, images(), spec=BitSpec(8, 8), scheme="matmul", ctx=ctx)
    assert ctx.counters["reparameterized"] == left  # of four
    assert torch.allclose(net(x), model.net(x), rtol=1e-5, atol=1e-5)
    migration, moved = migrated(model, trace(model), images(), 0.7, 8)
    assert moved == left
    assert torch.allclose(migration(x), model.net(x), rtol=1e-5, atol=1e-5)


def test_parameters_side_by_side_in_one_memory_are_each_their_own():
    net = network("vit")
    flat, start = torch.cat([parameter.flatten() for parameter in net.parameters()]), 0
    for parameter in net.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    assert pairs_of(net) == pairs_of(network("vit"))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reparameterized_network_is_the_same_function(name):
    net, x = network(name), images()
    folded = copy.deepcopy(net)
    with torch.no_grad():
        before = net(x)
        for pair in pairs_of(net):
            _, found = tap(net, x, [(pair.norm, OUTPUT)])
            y = found[pair.norm, OUTPUT]
            q = percentile_quantizer(y, 4, PERCENTILES, granularity=PerChannel(y.dim() - 1))
            merged = merge(q)
            fold(folded, pair, q, merged)
        assert not torch.equal(folded(x), before)  # something was moved
        assert torch.allclose(folded(x), before, rtol=1e-5, atol=1e-5)
    changed = [n for n, p in folded.named_parameters() if not torch.equal(p, dict(net.named_parameters())[n])]
    assert len(changed) == 4 * len(pairs_of(net)) - (name == "swin")  # `reduction` has no bias of its own


def layer(seed: int = 0):
    """LayerNorm, linear layer and inputs, with the channels' quantizer parameters."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 7)).requires_grad_(False)
    net[0].weight.copy_(torch.rand(12) * 3 + 0.1)
    net[0].bias.copy_(torch.randn(12))
    x = torch.randn(50, 12)
    return net, x, percentile_quantizer(net[0](x), 4, PERCENTILES, granularity=PerChannel(1))


@pytest.mark.parametrize("reduction", ["mean", "median"])
def test_folding_equals_the_formulas(reduction):
    net, x, q = layer()
    merged = merge(q, reduction)
    s, z = q.scale.double(), q.zero_point.double()
    reduced = (s.mean(), z.mean()) if reduction == "mean" else (s.median(), z.median())
    assert float(merged.scale) == pytest.approx(float(reduced[0]))
    assert int(merged.zero_point) == round(float(reduced[1]))
    r1, r2 = s / merged.scale.double(), z - int(merged.zero_point)
    weight, bias, gamma, beta = (p.double().clone() for p in (*net[1].parameters(), *net[0].parameters()))
    [pair] = find_pairs(net, one_pair(net), x)
    fold(net, pair, q, merged)
    for got, expected in (
        (net[0].weight, gamma / r1),
        (net[0].bias, (beta + s * r2) / r1),
        (net[1].weight, weight @ torch.diag(r1)),
        (net[1].bias, bias - weight @ (s * r2)),
    ):
        assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-6)


def one_pair(net):
    return trace_net(net, (1, 1, 12))


def test_one_integer_zero_point_is_as_good_as_one_for_each_channel():
    """Per-tensor quantization after folding is per-channel quantization before it; not so with a fraction."""
    net, x, q = layer(seed=1)
    expected = net[1](q(net[0](x)))
    outputs = {}
    for rounded in (True, False):
        moved = copy.deepcopy(net)
        merged = merge(q, round_zero_point=rounded)
        assert isinstance(merged, Uniform if rounded else FractionalZero)
        [pair] = find_pairs(moved, one_pair(moved), x)
        fold(moved, pair, q, merged)
        outputs[rounded] = moved[1](merged(moved[0](x)))
    assert float(q.zero_point.double().mean()) % 1 != 0  # else there would be nothing to tell apart
    assert torch.allclose(outputs[True], expected, atol=1e-4)
    assert float((outputs[False] - expected).abs().max()) > 1e-3


def test_a_fractional_zero_point_has_more_codes_than_bits_allow():
    x = torch.linspace(-2, 2, 1000)
    fractional = FractionalZero(torch.tensor(0.1), torch.tensor(7.5), 15)
    codes = fractional(x) / 0.1 + 7.5
    assert sorted({round(float(c), 3) for c in codes}) == [0, *(i + 0.5 for i in range(15)), 15]


# --- the calibrator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("label", CALIBRATOR.ablations)
def test_every_option_gives_a_model(name, scheme, label):
    model = tiny_model(name)
    options = RepqOptions(**CALIBRATOR.ablations[label])
    quantized = RepQ(options).calibrate(model, images(), spec=BitSpec(4, 4), scheme=scheme, ctx=FakeContext())
    assert torch.isfinite(quantized(images(3, 5))).all()
    assert all(low <= 0 <= high for low, high in quantized.summary.activation_ranges.values())
    kinds = {type(q) for q in quantized.activations.values()}
    assert (LogSqrt2 in kinds) == (scheme == "matmul")
    assert (UnclippedZero in kinds) == (options.layer_norms == "per-channel")


@pytest.mark.parametrize("name", NETWORKS)
def test_reparameterized_models_equal_per_channel_ones_but_for_weight_rounding(name, monkeypatch):
    def nearly_float(self, net, sites):
        parameters = dict(net.named_parameters())
        return {
            s.parameter: percentile_quantizer(parameters[s.parameter], 20, (1.0,), granularity=PerChannel(0))
            for s in sites
        }

    monkeypatch.setattr(RepQ, "_weights", nearly_float)
    model = tiny_model(name)
    outputs = []
    for how in ("reparameterized", "per-channel"):
        calibrator = RepQ(RepqOptions(layer_norms=how))
        kwargs = {"spec": BitSpec(8, 4), "scheme": "matmul", "ctx": FakeContext()}
        outputs.append(calibrator.calibrate(model, images(), **kwargs)(images(3, 5)))
    exact = model.net(images(3, 5))
    # A value half-way between two codes may fall to the other side.
    assert (outputs[0] - outputs[1]).square().mean() < 0.02 * (outputs[1] - exact).square().mean()


def test_later_layers_are_calibrated_on_quantized_inputs():
    model = tiny_model("vit")
    coarse, fine = (
        RepQ(RepqOptions()).calibrate(model, images(), spec=BitSpec(w, 8), scheme="matmul", ctx=FakeContext())
        for w in (2, 8)
    )
    first, *_, last = coarse.sites.activations
    assert torch.equal(coarse.activations[first.point].scale, fine.activations[first.point].scale)
    assert not torch.equal(coarse.activations[last.point].scale, fine.activations[last.point].scale)
