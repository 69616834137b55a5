"""I&S-ViT's quantizer against its formula, and what its stages do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model

from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.calibrators.isvit.calibrator import Isvit, Ranges, merged
from methods.calibrators.isvit.info import INFO as CALIBRATOR
from methods.calibrators.isvit.info import IsvitOptions
from methods.calibrators.isvit.sulq import Sulq
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.logarithmic import UnclippedZero
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import weight_quantizer
from methods.core.reconstruction.tuning import TunedCodes, TunedFloat
from methods.core.reparameterization.calibrator import pair_points
from methods.core.reparameterization.fold import find_pairs

SHIFTS = IsvitOptions().shifts


def attention(seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    """Softmax outputs (2, 3, 17, 17)."""
    return (spread * torch.randn(2, 3, 17, 17, generator=torch.Generator().manual_seed(seed))).softmax(-1)


# --- SULQ -------------------------------------------------------------------------------------------------------


def explicit(x: float, eta: float, s: float, z: float, top: int) -> float:
    y = math.log2(x + eta)
    code = min(max(round(y / s) + z, 0), top)
    return 2.0 ** round((code - z) * s) - eta


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_sulq_equals_its_formula_written_out(bits, extra):
    x = attention().double()
    top = 2**bits if extra else 2**bits - 1
    errors, rounded = {}, {}
    for eta in SHIFTS:
        y = (x + eta).log2()
        s = float(y.max() - y.min()) / top
        z = round(-float(y.min()) / s)
        rounded[eta] = torch.tensor([explicit(v, eta, s, z, top) for v in x.flatten().tolist()], dtype=torch.float64)
        errors[eta] = float((rounded[eta] - x.flatten()).square().sum())
    best = min(errors, key=errors.__getitem__)
    q = Sulq.of(x, bits, SHIFTS, extra=extra)
    assert float(q.shift) == best
    torch.testing.assert_close(q(x).flatten(), rounded[best], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("extra", "codes"), [(False, 16), (True, 17)])
def test_code_counts_at_4_bits(extra, codes):
    """The reference's forward pass has 17 codes at 4 bits, and 8 distinct values of them (METHODS: appendix B)."""
    x = torch.linspace(0, 1, 4001)
    q = Sulq.of(x, 4, (0.01,), extra=extra)
    assert len(q.values()) == codes == q.top + 1
    used = ((x + q.shift).log2() / q.scale).round().add(q.zero_point).clamp(0, q.top).unique()
    assert len(used) == codes
    assert len(q(x).unique()) == len(q.values().unique()) == 8  # 2^-7 to 2^0, less 0.01
    assert set(q(x).unique().tolist()) == set(q.values().unique().tolist())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_sulq_has_no_more_values_than_codes_and_none_for_its_ends(bits):
    x = attention(1, 5.0)
    q = Sulq.of(x, bits, SHIFTS, extra=False)
    assert len(q(x).unique()) <= 2**bits
    assert float(q.low) <= 0.0 < float(q.high)
    wide = torch.linspace(0, 3, 500)
    assert float(q(wide).max()) <= float(q.high)
    # Values are 2^k - η with an integer k: a shift and a subtraction.
    k = (q.values() + q.shift).double().log2()
    torch.testing.assert_close(k, k.round(), atol=1e-5, rtol=0)


def test_sulq_beats_the_uniform_quantizer_on_peaked_attention_at_low_bits():
    x = attention(2, 3.0)
    uniform = percentile_quantizer(x, 3, IsvitOptions().percentiles, widen=True)
    small = x < 0.1
    error = [float((q(x) - x)[small].square().mean()) for q in (Sulq.of(x, 3, SHIFTS, extra=False), uniform)]
    assert error[0] < error[1]


def test_sulq_of_a_constant_or_masked_tensor():
    for x in (torch.full((4, 4), 0.25), torch.zeros(4, 4), torch.tensor([0.0, 1.0])):
        q = Sulq.of(x, 4, SHIFTS, extra=False)
        assert torch.isfinite(q(x)).all()
        assert float((q(x) - x).abs().max()) < 0.3


def test_sulq_gradient_is_that_of_straight_through_roundings():
    x = attention().double()
    q = Sulq.of(x[:, :, :8], 3, SHIFTS, extra=False)
    x = x * 1.5  # some values lie above the range

    def through(v: torch.Tensor) -> torch.Tensor:
        return v.round().detach() + (v - v.detach())

    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    result = q(ours)
    code = through((theirs + q.shift).log2() / q.scale) + q.zero_point
    # The end codes count as inside; what torch's own clamp does there differs between versions.
    code = torch.where((code >= 0) & (code <= q.top), code, code.detach().clamp(0, q.top))
    expected = torch.exp2(through((code - q.zero_point) * q.scale)) - q.shift
    torch.testing.assert_close(result, expected)
    assert torch.equal(result.detach(), q(x))
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad == 0).any()


# --- weights that are learned -----------------------------------------------------------------------------------


def test_straight_through_takes_zero_points_outside_the_codes():
    x = (5 + torch.randn(6, 40, generator=torch.Generator().manual_seed(0))).requires_grad_()
    q = percentile_quantizer(x.detach(), 3, (0.9,), granularity=PerChannel(0))
    assert (q.zero_point < 0).any()
    assert torch.equal(q.straight_through(x), q(x.detach()))
    q.straight_through(x).sum().backward()
    low, high = ((end - q.zero_point) * q.scale for end in (q.qmin, q.qmax))
    inside = (x >= (low - q.scale / 2)[:, None]) & (x <= (high + q.scale / 2)[:, None])
    assert torch.equal(x.grad, inside.float())

    channels = UnclippedZero(q.scale, q.zero_point, q.qmin, q.qmax, PerChannel(1))
    y = x.detach().T.clone().requires_grad_()
    channels(y).sum().backward()
    assert torch.equal(y.grad, x.grad.T)


def test_learned_weights():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    grid = weight_quantizer(weight, 3, symmetric=False)
    plain, coded = TunedFloat(weight), TunedCodes(weight, grid)
    assert torch.equal(plain.soft(), weight)
    assert torch.equal(coded.soft(), grid(weight))
    with torch.no_grad():
        for each in (plain, coded):
            each.v.add_(0.3)
    assert torch.equal(plain.hard()(weight), weight + 0.3)
    assert torch.equal(coded.hard()(weight), grid(weight + 0.3))
    assert not plain.hard()(weight).requires_grad


# --- stages -----------------------------------------------------------------------------------------------------


def calibrated(network: str, scheme: str = "matmul", bits: str = "W3A4", seed: int = 0, **options):
    ctx = FakeContext(seed)
    o = IsvitOptions(**{"steps": 60, "batch": 8, "lr": 2e-3, **options})
    quantized = Isvit(o).calibrate(
        tiny_model(network), images(8), spec=BitSpec.parse(bits), scheme=scheme, ctx=ctx
    )  # fmt: skip
    return quantized, ctx


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_both_tuning_stages_lower_the_blocks_errors(network):
    _, ctx = calibrated(network, bits="W4A4", lr=2e-4)
    # Rounding's error is large and can be tuned away; that of activations alone is small.
    for stage, share in (("reconstruction-stage-1", 0.99), ("reconstruction-stage-3", 0.9)):
        errors = np.array([ctx.found[stage][when] for when in ("before", "after")])
        assert errors[1].sum() < share * errors[0].sum()
        assert (errors[1] <= 1.1 * errors[0] + 1e-4).mean() > 0.7
    assert ctx.counters["reparameterized"] > 0


def test_without_the_stages_only_the_last_one_runs():
    _, ctx = calibrated("vit", steps=2, smooth=False)
    assert "reconstruction-stage-1" not in ctx.found
    assert "reconstruction-stage-3" in ctx.found


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_merging_changes_neither_the_float_function_nor_which_sites_are_per_tensor(network, scheme):
    model = tiny_model(network)
    x = images(5)
    graph = trace(model)
    sites = find_sites(graph, scheme, BitSpec(4, 4))
    channels = {pair: pair_points(pair, sites) for pair in find_pairs(model.net, graph, x[:1])}
    before = Ranges(IsvitOptions()).find(model.net, x, sites, graph, channels)
    net, after = merged(model.net, channels, before)
    torch.testing.assert_close(net(x), model.net(x), atol=1e-4, rtol=1e-3)
    assert any(isinstance(q, UnclippedZero) for q in before.values())
    assert all(q.scale.dim() == 0 for q in after.values())
    logarithmic = [q for q in after.values() if isinstance(q, Sulq)]
    assert len(logarithmic) == (len(graph.of_kind("softmax")) if scheme == "matmul" else 0)


def test_weights_are_trained_and_the_float_model_is_not_touched():
    model = tiny_model("vit")
    before = copy.deepcopy(model.net.state_dict())
    options = IsvitOptions(steps=20, batch=8, lr=5e-3)
    quantized = Isvit(options).calibrate(
        model, images(8), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext()
    )  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    moved = 0
    for name, q in quantized.weights.items():
        own = quantized.net.get_parameter(name)
        assert not own.requires_grad
        assert torch.equal(own, q.base(q.weight))
        moved += int((own != q.base(quantized._float[name])).sum())
    assert moved > 0


def test_wide_weights_take_their_own_number_of_steps():
    for bits, steps in (("W4A6", 2), ("W6A6", 1)):
        _, ctx = calibrated("vit", bits=bits, steps=2, wide_steps=1)
        assert ctx.counters["reconstruction_steps"] == steps * ctx.counters["reconstructed_units"]


def test_seeds_decide():
    x = images(3, seed=5)
    results = [calibrated("vit", steps=5, batch=4, seed=seed)[0](x) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_what_the_plugin_says():
    info = Catalog.default().calibrators.get("isvit")
    assert info is CALIBRATOR
    assert info.trains == "weights"
    assert "trains weights" in info.summary
    for preset in ("quick", "default", "paper"):
        info.check_ablations(preset, {})
    paper = info.resolve("paper", {})
    assert (paper.steps, paper.wide_steps, paper.batch, paper.lr, paper.range_images) == (1000, 200, 64, 4e-5, 64)
    assert len(paper.shifts) == 11
    assert len(paper.weight_percentiles) == 9
    assert paper.sulq_codes == "2^b"
