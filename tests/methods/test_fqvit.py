"""FQ-ViT's parts against their formulas, written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn

from harness.api.spec import BitSpec
from methods.calibrators.fqvit.info import INFO as CALIBRATOR
from methods.core.graph.intercept import OUTPUT, OpKey, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.integer.calibrator import FqVit
from methods.core.integer.grids import arrivals
from methods.core.integer.operations import SHIFT, A, IntegerLayerNorm, LogIntSoftmax, fine_grid, int_exp
from methods.core.integer.options import FqvitOptions
from methods.core.integer.quantizers import FactorSearch, Log2
from methods.core.numerics.quantizers import Uniform


def residual_stream(seed: int = 0, tokens: int = 50) -> torch.Tensor:
    """Channels of very different ranges, as LayerNorm inputs have them."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([10.0, 5.0, 2.6, 2.2, 1.2, 0.7, 0.3, 0.01])
    return torch.randn(3, tokens, len(spread), generator=generator) * spread + 0.1


def calibrated(network: str, scheme: str = "full", bits: str = "W8A8", **options):
    return FqVit(FqvitOptions(**options)).calibrate(
        tiny_model(network), images(), spec=BitSpec.parse(bits), scheme=scheme, ctx=FakeContext()
    )


# --- power-of-two factors ------------------------------------------------------------------------------------------


def fitted(x: torch.Tensor, bits: int = 8, largest: int = 3) -> Uniform:
    search = FactorSearch(x.min(), x.max(), bits, largest, axis=2)
    for batch in x.split(2):  # errors add up over batches
        search.update(batch)
    return search.best()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("largest", [0, 3])
def test_factors_are_the_argmin_over_an_explicit_loop(bits, largest):
    x = residual_stream()
    values = x.double().numpy()
    low, high, top = float(x.min()), float(x.max()), 2**bits - 1
    finest = (high - low) / top / 2**largest
    zero = min(max(round(-low / (finest * 2**largest)), 0), top)
    chosen = []
    for c in range(x.shape[2]):
        errors = []
        for a in range(largest + 1):
            s = finest * 2**a
            codes = np.clip(np.round(values[:, :, c] / s) + zero, 0, top)
            errors.append(np.square((codes - zero) * s - values[:, :, c]).sum())
        chosen.append(int(np.argmin(errors)))
    q = fitted(x, bits, largest)
    assert torch.allclose(q.scale, torch.tensor([finest * 2**a for a in chosen], dtype=torch.float32), rtol=1e-5)
    assert (q.zero_point == zero).all()
    if largest:
        assert len(set(chosen)) == 4  # the channels do need different factors


def test_codes_of_the_power_of_two_quantizer():
    x = residual_stream()
    q = fitted(x)
    got = q(x)
    for c in range(x.shape[2]):
        s, zero = float(q.scale[c]), int(q.zero_point[c])
        codes = torch.clamp(torch.round(x[..., c] / s) + zero, 0, 255)
        assert torch.allclose(got[..., c], (codes - zero) * s, atol=1e-5)
        assert len(got[..., c].unique()) <= 256
    assert torch.equal(q(got), got)
    exponents = torch.log2(q.scale / q.scale.min())
    assert torch.equal(exponents, exponents.round())
    assert float(q.low) <= float(got.min()) <= float(got.max()) <= float(q.high)
    assert q.low.dim() == q.high.dim() == 0
    # What the factors are for: less error than one step for all channels.
    assert (got - x).square().mean() < 0.5 * (fitted(x, largest=0)(x) - x).square().mean()


# --- log2 quantizer and log-int-softmax ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_is_a_code", [True, False])
def test_log2_codes(bits, zero_is_a_code):
    powers = 2**bits - zero_is_a_code
    quantizer = Log2(powers)
    x = torch.cat([torch.rand(300, generator=torch.Generator().manual_seed(0)) ** 8, torch.tensor([0.0, 1.0, 1e-30])])
    expected = []
    for value in x.tolist():
        q = round(-math.log2(value)) if value > 0 else math.inf
        expected.append(2.0**-q if q < powers else 0.0)
    assert quantizer(x).tolist() == expected
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))
    dense = quantizer(torch.cat([torch.zeros(1), torch.logspace(-40, 0, 4000, 2)]))
    assert len(dense.unique()) <= powers + 1
    x.requires_grad_(True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("step", [2**-5, 2**-7, 1e-3])
def test_i_exp_is_close_to_the_exponential(step):
    codes = torch.arange(0, -int(8 / step), -1, dtype=torch.float64)
    got = int_exp(codes, step) * A * step**2 * 2.0**-SHIFT
    exact = (codes * step).exp()
    ln2 = math.floor(-0.6931 / step) * -step
    # A power of two too few for each ln 2 that is rounded up by less than a step; within, the polynomial's own error
    # (3e-3 of the value) and its rounded coefficients.
    halvings = (codes * step / -ln2).floor()
    tolerance = 2e-3 + 3 * step + halvings * (ln2 - math.log(2))
    assert ((got - exact).abs() <= tolerance * exact * 2).all()
    assert torch.equal(int_exp(codes, step), int_exp(codes, step).round())
    if step == 1e-3:
        assert ((got / exact - 1).abs() <= 0.012).all()


def test_i_exp_equals_its_formula_in_python_integers():
    step = 0.07
    x0, b, c = math.floor(-0.6931 / step), math.floor(0.96963238 / A / step), math.floor(1 / A / step**2)
    for code in range(0, -400, -1):
        clipped = max(code, 30 * x0)
        q = clipped // x0
        r = clipped - q * x0
        expected = ((r + b) * r + c) * 2**30 >> q
        assert int(int_exp(torch.tensor([float(code)], dtype=torch.float64), step)) == expected


def test_log_int_softmax_equals_its_formula():
    step, powers = 0.11, 15
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-70, 71, (20, 9), generator=generator)
    got = LogIntSoftmax(step, powers)(codes * step)
    for row, result in zip(codes, got, strict=True):
        e = [int(v) for v in int_exp((row - row.max()).double(), step)]
        for value, found in zip(e, result.tolist(), strict=True):
            if value == 0:
                assert found == 0
                continue
            ratio = round(sum(e) / value)
            q = ratio.bit_length() - 1
            q += ratio / 2**q >= 1.5
            assert found == (2.0**-q if q < powers else 0.0)
    # Against the float softmax: half a power of two of rounding (0.59 in the linear domain), and i-exp's ln 2, which is
    # 7 steps or 0.77 here, so that each halving is a ninth of a power of two off.
    exact = (codes * step).softmax(-1)
    kept = (exact > 2.0**-8) & (got > 0)
    assert (torch.log2(got[kept] / exact[kept]).abs() < 0.75 - 0.12 * torch.log2(exact[kept])).all()


def test_masked_scores_get_no_weight_and_coarse_grids_no_nan():
    scores = torch.tensor([[1.0, 0.5, -100.0, -math.inf]])
    assert LogIntSoftmax(0.5, 15, 2**-5)(scores)[0, 2:].tolist() == [0.0, 0.0]
    # A row without any score, and scores on the grid of a constant tensor.
    for row, step in ((torch.full((1, 4), -math.inf), 0.1), (torch.zeros(1, 4), 1e-8)):
        assert LogIntSoftmax(step, 15)(row).tolist() == [[0.25] * 4]
    for step in (0.5, 3.0, 100.0):
        for coarsest in (None, 2**-5):
            out = LogIntSoftmax(step, 15, coarsest)(torch.randn(4, 6) * 3)
            assert torch.isfinite(out).all()
            assert (out.amax(-1) > 0).all()


def test_shifted_codes_are_the_same_values():
    codes = torch.arange(-20.0, 1.0)
    fine, step = fine_grid(codes, 0.9, 2**-5)
    assert step <= 2**-5
    assert torch.allclose(fine * step, codes * 0.9)
    assert fine_grid(codes, 0.03, 2**-5) == (codes, 0.03)
    # On a coarse grid the shift is what makes i-exp usable.
    scores = codes[None] * 0.9
    exact = Log2(15)(scores.softmax(-1))
    assert (LogIntSoftmax(0.9, 15, 2**-5)(scores) - exact).abs().max() <= 0.25
    assert (LogIntSoftmax(0.9, 15, 2**-5)(scores) - exact).abs().mean() < 0.02


# --- integer LayerNorm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_integer_layer_norm_is_within_its_tolerance(seed):
    x = residual_stream(seed)
    q = fitted(x)
    x = q(x)
    generator = torch.Generator().manual_seed(seed + 10)
    weight = torch.randn(8, generator=generator)
    bias = torch.randn(8, generator=generator)
    exact = nn.functional.layer_norm(x.double(), (8,), weight.double(), bias.double(), 0.0)
    out_step = (exact.max() - exact.min()).float() / 255
    got = IntegerLayerNorm(q.scale, out_step)(x, (8,), weight, bias, 1e-6)
    sigma = x.var(-1, correction=0, keepdim=True).sqrt()
    tolerance = (weight * x / sigma).abs() / 128 + out_step
    assert ((got - exact).abs() <= tolerance).all()
    codes = got / out_step
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_integer_layer_norm_equals_its_formula():
    steps = torch.tensor([0.25, 0.5, 0.25, 2.0])
    integers = torch.tensor([[3, -7, 20, 5], [0, 1, 2, -3], [100, -90, 4, 8]])
    x = integers * steps
    weight, bias, out_step = torch.tensor([0.9, -1.7, 0.003, 2.0]), torch.tensor([0.2, 0.0, -1.0, 0.7]), 0.0123
    got = IntegerLayerNorm(steps, torch.tensor(out_step))(x, (4,), weight, bias)
    for row, result in zip(integers.tolist(), got, strict=True):
        shifted = [v * m for v, m in zip(row, [1, 2, 1, 8], strict=True)]
        total, squares = sum(shifted), sum(v * v for v in shifted)
        mu, sigma = 0.25 * total / 4, 0.25 / 4 * math.sqrt(4 * squares - total * total)
        for c, value in enumerate(shifted):
            gain = 0.25 / sigma * float(weight[c]) / out_step
            n = min(max(7 - math.floor(math.log2(abs(gain))), 0), 31)
            m = min(math.floor(abs(gain) * 2**n), 255)
            b = round((float(bias[c]) - mu / sigma * float(weight[c])) / out_step * 2**n)
            y = round((math.copysign(m, gain) * value + b) / 2**n) * out_step
            assert float(result[c]) == pytest.approx(y, abs=out_step * 0.01)


def test_a_constant_token_gives_the_bias():
    layer = IntegerLayerNorm(torch.full((4,), 0.5), torch.tensor(0.01))
    weight, bias = torch.tensor([1.0, 0.0, -2.0, 3.0]), torch.tensor([0.5, -0.2, 0.0, 1.0])
    assert torch.allclose(layer(torch.full((2, 4), 40.0), (4,), weight, bias), bias.expand(2, 4), atol=0.006)
    assert torch.equal(layer(torch.zeros(2, 4), (4,)), torch.zeros(2, 4))


# --- on networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_norm_and_softmax_is_computed_in_integers(network):
    quantized = calibrated(network)
    graph = trace(tiny_model(network))
    wanted = {op.key for kind in ("layer_norm", "softmax") for op in graph.of_kind(kind)}
    assert set(quantized.instead) == wanted
    inputs = {key for op in graph.of_kind("layer_norm") for key in op.operands[0].ops}
    factored = {key for (key, _), q in quantized.activations.items() if isinstance(q, Uniform) and q.axis is not None}
    assert factored == inputs


@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_those_of_the_values_that_arrive(network):
    """Also behind a convolution, whose channels are first, and behind patch merging, which mixes four tokens."""
    model = tiny_model(network)
    quantized = calibrated(network, layer_norm="float", softmax="float")
    integer = calibrated(network)
    points = [(key, 0) for key in integer.instead if key.kind == "layer_norm"]
    found = {}
    with quantized.interceptor() as mode:
        mode.transforms |= {point: (lambda x, point=point: found.setdefault(point[0], x)) for point in points}
        quantized.net(images(2))
    assert len(found) == len(points)
    for key, x in found.items():
        codes = x / integer.instead[key].steps
        assert torch.allclose(codes, codes.round(), atol=2e-3)
    assert model.net is not quantized.net


@pytest.mark.parametrize("network", NETWORKS)
def test_integer_arithmetic_changes_little_at_eight_bits(network):
    x = images(8, seed=3)
    exact = tiny_model(network).net(x)
    plain = calibrated(network, softmax="float", layer_norm="float")(x)
    whole = calibrated(network, softmax="float")(x)
    assert (whole - exact).norm() <= 1.3 * (plain - exact).norm() + 0.02 * exact.norm()


def test_sites_of_softmax_outputs_are_the_methods_own():
    model = tiny_model("swin")
    scheme = find_sites(trace(model), "full", BitSpec(8, 8))
    log = calibrated("swin")
    extra = set(log.activations) - {site.point for site in scheme.activations}
    assert {key.kind for key, _ in extra} == {"softmax"}
    assert all(log.activations[point] == Log2(16) for point in extra)
    assert {log.summary.activation_bits[f"{key}:out"] for key, _ in extra} == {4}
    same = calibrated("swin", softmax="float")
    assert set(same.activations) == {site.point for site in scheme.activations}


def test_softmax_outputs_are_powers_of_two_in_both_schemes():
    for scheme, point in (("full", ("softmax", OUTPUT)), ("matmul", ("matmul", 0))):
        quantized = calibrated("vit", scheme, "W8A4")
        logs = [p for p, q in quantized.activations.items() if isinstance(q, Log2)]
        assert len(logs) == 2
        assert {(key.kind, slot) for key, slot in logs} == {point}
        assert not (scheme == "matmul" and quantized.instead)
        seen = []
        quantizer = quantized.activations[logs[0]]
        with quantized.interceptor() as mode:
            mode.transforms[logs[0]] = lambda x, seen=seen, quantizer=quantizer: seen.append(quantizer(x)) or seen[-1]
            quantized.net(images(2))
        exponents = torch.log2(seen[0][seen[0] > 0])
        assert torch.equal(exponents, exponents.round())
        assert seen[0].max() <= 1


class Scaled(nn.Module):
    """Attention whose scores are scaled after their site, and masked; or scaled by head."""

    def __init__(self, per_head: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.heads = nn.Parameter(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1) if per_head else torch.tensor(0.25))
        mask = torch.zeros(16, 16)
        mask[0, 1:] = -math.inf
        self.register_buffer("mask", mask)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q @ k.transpose(-1, -2)) * self.heads + self.mask, -1)
        return self.head((weights @ v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("per_head", [False, True])
def test_a_scaled_grid_is_followed_and_a_grid_per_head_left_in_float(per_head):
    torch.manual_seed(0)
    model = tiny_model("vit")
    object.__setattr__(model, "net", Scaled(per_head).eval().requires_grad_(False))
    graph = trace(model)
    scores, values = OpKey("", "matmul", 0), OpKey("embed", "conv", 0)
    found = arrivals(model, graph, {scores, values})
    softmax, norm = OpKey("", "softmax", 0), OpKey("norm", "layer_norm", 0)
    assert found[norm].axis == 1
    assert found[norm].channels.tolist() == list(range(8))
    if per_head:
        assert softmax not in found
    else:
        assert found[softmax].source == scores
        assert found[softmax].factor == pytest.approx(0.25)
    spec = BitSpec(8, 8)
    quantized = FqVit(FqvitOptions()).calibrate(model, images(), spec=spec, scheme="full", ctx=FakeContext())
    assert (softmax in quantized.instead) is not per_head
    assert torch.isfinite(quantized(images())).all()


def test_observers_and_presets():
    ranges = {
        name: calibrated("vit", observer=name, quantile=0.9, softmax="float").summary.activation_ranges
        for name in ("minmax", "ema", "percentile", "omse")
    }
    assert len({str(sorted(r.items())) for r in ranges.values()}) == 4
    image = "patch_embed.proj/conv.0:in0"
    assert ranges["percentile"][image][1] < ranges["minmax"][image][1]
    stream = "blocks.0/add.0:out"  # under power-of-two factors
    assert ranges["percentile"][stream] == ranges["minmax"][stream]
    default, paper = CALIBRATOR.resolve("default", {}), CALIBRATOR.resolve("paper", {})
    assert FqVit(default)._powers(4) == 15
    assert FqVit(paper)._powers(4) == 16
    CALIBRATOR.check_ablations("default", {})


def test_calibration_leaves_the_float_model_alone():
    model = tiny_model("vit")
    point = (OpKey("norm", "layer_norm", 0), OUTPUT)
    _, before = tap(model.net, images(2), [point])
    FqVit(FqvitOptions()).calibrate(model, images(), spec=BitSpec(4, 4), scheme="full", ctx=FakeContext())
    _, after = tap(model.net, images(2), [point])
    assert torch.equal(before[point], after[point])
