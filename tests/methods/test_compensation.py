"""GPTQ and MicroScopiQ: against plain loops, at the ends of damping, and what their weights take."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model

from harness.api.formats import MICROSCALING, Format
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.run.checks import summarise
from methods.calibrators.microscopiq.outliers import Layout, MicroBlocks, WithOutliers
from methods.core.audit import audit
from methods.core.compensation.columns import Blocks, Channels, alone, compensated
from methods.core.graph.trace import trace
from methods.core.numerics.levels import outlier_fault
from methods.core.numerics.microscaling import cut, in_blocks
from methods.core.numerics.quantizers import weight_quantizer
from methods.core.reconstruction.units import LayerUnit
from methods.core.reparameterization.migration import migrated

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(200, 70, generator=GENERATOR, dtype=torch.float64) @ torch.randn(70, 70, generator=GENERATOR).double()
H = X.T @ X
W = torch.randn(5, 70, generator=GENERATOR)
GRID = weight_quantizer(W, 3, symmetric=True)


def by_explicit_inverse(weight, second, damping, rounded):
    """OBQ in a fixed order: after each column the inverse of H without it is computed anew."""
    w, c = weight.double().clone(), len(second)
    damped = second + damping * second.diagonal().mean() * torch.eye(c, dtype=torch.float64)
    for j in range(c):
        inverse = torch.linalg.inv(damped[j:, j:])
        error = w[:, j] - rounded(j, w)
        w[:, j:] -= error[:, None] / inverse[0, 0] * inverse[0]
    return w


@pytest.mark.parametrize("block", [1, 32, 128])
def test_gptq_is_column_by_column_compensation(block):
    def rounded(j, w):
        return (w[:, j] / GRID.scale).round().clamp(GRID.qmin, GRID.qmax) * GRID.scale

    expected = by_explicit_inverse(W, H, 0.01, rounded)
    found = compensated(W, H, Channels(GRID), damping=0.01, block=block)
    assert torch.allclose(found, expected, atol=1e-6)
    before, after = ((GRID(W) - W).double() @ X.T, (found - W) @ X.T)
    assert after.square().sum() < 0.5 * before.square().sum()


@pytest.mark.parametrize("name", ["MXINT4", "MXFP4"])
def test_blocks_have_the_scale_of_what_is_left_of_them(name):
    stored, known = MICROSCALING[name], {}

    def rounded(j, w):
        begin = j // 32 * 32
        if j == begin:
            known["largest"] = w[:, begin : begin + 32].abs().amax(1, keepdim=True)
        column = torch.cat([w[:, j, None], known["largest"]], 1)  # the largest has the block's scale come of it
        return in_blocks(column, stored, -1)[:, 0]

    expected = by_explicit_inverse(W, H, 0.1, rounded)
    assert torch.allclose(compensated(W, H, Blocks(stored), damping=0.1, block=20), expected, atol=1e-9)


def test_without_bound_on_damping_it_is_rounding():
    assert torch.equal(compensated(W, H, Channels(GRID), damping=1e15, block=128).float(), GRID(W))
    for name in ("MXINT8", "MXFP6"):
        found = compensated(W, H, Blocks(MICROSCALING[name]), damping=1e15, block=128)
        assert torch.equal(found.float(), in_blocks(W, MICROSCALING[name], -1))
    layout = Layout(2, 32, 8, 1.5)
    found = compensated(W, H, MicroBlocks(layout), damping=1e15, block=128)
    assert torch.equal(found, alone(W, MicroBlocks(layout)))


@pytest.mark.parametrize("bits", [2, 4])
def test_without_outliers_microscopiq_is_gptq_on_its_integers(bits):
    layout = Layout(bits, 32, 8, 1e6)
    found = compensated(W, H, MicroBlocks(layout), damping=0.01, block=128)
    stored = Format(bits, "int", "group", 32, "e8m0")
    assert torch.equal(found, compensated(W, H, Blocks(stored), damping=0.01, block=128))


@pytest.mark.parametrize("bits", [2, 4])
def test_compensation_makes_up_for_outliers_and_pruned_weights(bits):
    weight, layout = W.double(), Layout(bits, 32, 8, 1.5)
    weight[:, ::11] *= 6.0
    before, after = (
        alone(weight, MicroBlocks(layout)),
        compensated(weight, H, MicroBlocks(layout), damping=0.01, block=32),
    )
    errors = [((found - weight) @ X.T).square().sum() for found in (before, after)]
    assert errors[1] < 0.8 * errors[0]
    assert outlier_fault(cut(after, -1, 32), bits, 8) is None


def plain(row: list[float], inverse: list[float], layout: Layout) -> list[float]:
    """MicroScopiQ's rounding of one output channel, number by number, without compensation."""
    result, bits, macro, micro, sigmas = list(row), layout.bits, layout.macro, layout.micro, layout.sigmas
    for begin in range(0, len(row), macro):
        block = row[begin : begin + macro]
        mean = sum(block) / len(block)
        deviation = math.sqrt(sum((w - mean) ** 2 for w in block) / len(block))
        outlying = set()
        for start in range(0, len(block), micro):
            places = range(start, min(start + micro, len(block)))
            far = sorted((p for p in places if abs(block[p] - mean) > sigmas * deviation), key=lambda p: -abs(block[p]))
            outlying |= set(far[: len(places) // 2])
        largest = max(abs(w) for p, w in enumerate(block) if p not in outlying)
        scale = 2.0 ** math.floor(math.log2(largest))
        step, most = scale * 2.0 ** (2 - bits), 2 ** (bits - 1) - 1
        for start in range(0, len(block), micro):
            places = range(start, min(start + micro, len(block)))
            mine = [p for p in places if p in outlying]
            others = sorted(set(places) - outlying, key=lambda p: block[p] ** 2 / inverse[begin + p])
            pruned = others[: len(mine)]
            exponent = math.floor(math.log2(max((abs(block[p]) for p in mine), default=1.0)))
            steps = {2: 4, 4: 16}[bits]
            for p in places:
                w = block[p]
                if p in mine:
                    k = min(steps - 1, max(0, round((abs(w) / 2.0**exponent - 1) * steps)))
                    result[begin + p] = math.copysign((1 + k / steps) * 2.0**exponent, w)
                else:
                    result[begin + p] = 0.0 if p in pruned else max(-most, min(most, round(w / step))) * step
    return result


@pytest.mark.parametrize("bits", [2, 4])
def test_outliers_and_pruning_against_a_plain_loop(bits):
    weight = W.double()
    weight[:, ::11] *= 6.0
    inverse = torch.rand(70, generator=GENERATOR).double() + 0.5
    rounder = MicroBlocks(Layout(bits, 32, 8, 1.5))
    rows = []
    for begin in range(0, 70, 32):
        part = slice(begin, min(begin + 32, 70))
        rounder.start(part, weight[:, part], inverse[part])
        rows += [rounder.column(j - begin, weight[:, j]) for j in range(begin, part.stop)]
    found = torch.stack(rows, 1)
    expected = [plain(row, inverse.tolist(), Layout(bits, 32, 8, 1.5)) for row in weight.tolist()]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float64))
    assert rounder.micro_blocks == 5 * 9
    assert 0 < rounder.with_outliers <= rounder.outliers
    # 8 bits a macro-block, 1 a micro-block, and 8 + 24 for each with outliers.
    kept = WithOutliers.of(rounder, found, 5, 70)
    assert kept.stored_as(bits) == (
        Format(bits, "int", "group", 32, "e8m0"),
        8 * 5 * 3 + 5 * 9 + 32 * rounder.with_outliers,
    )
    assert outlier_fault(cut(found, -1, 32), bits, 8) is None


def test_the_audit_finds_outliers_that_nothing_pays_for():
    weight = W.double()
    weight[:, ::11] *= 6.0
    found = alone(weight, MicroBlocks(Layout(4, 32, 8, 1.5)))
    assert "none" not in str(outlier_fault(cut(weight, -1, 32), 4, 8))
    assert "15 of 15 blocks" in str(outlier_fault(cut(weight, -1, 32), 4, 8))  # in float
    eight = in_blocks(weight, Format(8, "int", "group", 32, "e8m0"), -1)
    assert outlier_fault(cut(eight, -1, 32), 4, 8) is not None
    unpaid = torch.where(found == 0, found.abs().max() * 2.0**-20, found)
    assert outlier_fault(cut(unpaid, -1, 32), 4, 8) is not None


def quantized(name: str, bits: str, scheme: str = "full", network: str = "vit", **options):
    catalog = Catalog.default()
    built = catalog.resolve(f"noise+{name}", "quick", {name: options, "noise": {"images": 4}}).build()
    ctx = FakeContext(0)
    spec, model = BitSpec.parse(bits), tiny_model(network)
    return built.quantize(model, spec=spec, scheme=scheme, calib=None, ctx=ctx), ctx


@pytest.mark.parametrize(
    ("name", "bits", "options"),
    [
        ("gptq", "MXFP4AMXINT8", {}),
        ("gptq", "W3A8", {"weights": "asymmetric", "inputs": "float"}),
        ("microscopiq", "W2AMXINT8", {"sigmas": 1.5}),
    ],
)
def test_networks_pass_the_audit(name, bits, options):
    (found, ctx), model = quantized(name, bits, "matmul", **options), tiny_model("vit")
    assert ctx.counters["compensated"] == len(found.sites.weights)  # the patch embedding too
    _, findings = audit(model, found, images(3), scheme="matmul", spec=BitSpec.parse(bits), thorough=True)
    assert not findings
    kept = summarise("mine", found.summary)
    assert kept.effective_weight_bits > kept.mean_weight_bits
    assert (kept.bit_operations is None) == ("FP" in bits)


def test_damped_without_bound_a_network_is_that_of_minmax():
    plainly, _ = quantized("minmax", "W4A8")
    found, _ = quantized("gptq", "W4A8", damping=1e15)
    assert torch.equal(found(images(2)), plainly(images(2)))


def test_microscopiq_is_for_two_widths():
    built = Catalog.default().resolve("noise+microscopiq", "quick").build()
    model = tiny_model("vit")
    assert built.skip(model, spec=BitSpec.parse("W4A8"), scheme="full") is None
    assert "2 and 4 bits, and W3A8 has others" in built.skip(model, spec=BitSpec.parse("W3A8"), scheme="full")


def test_migration_changes_no_output_and_evens_channels_out():
    model = tiny_model("vit")
    with torch.no_grad():
        next(m for m in model.net.modules() if isinstance(m, torch.nn.LayerNorm)).weight[0] = 50.0
    net, count = migrated(model, trace(model), images(), 0.7, 4)
    assert count > 0
    assert torch.allclose(net(images(3)), model.net(images(3)), atol=1e-3, rtol=1e-4)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, model.net.state_dict()[name])]
    assert changed
    assert all(".norm" in name or "qkv" in name or "fc1" in name or "head" in name for name in changed)


def test_what_a_convolution_sums_over():
    """The product of the sums' terms and the flat weight is the convolution."""
    x, weight = torch.randn(2, 1, 3, 8, 8, generator=GENERATOR), torch.randn(4, 3, 3, 3, generator=GENERATOR)
    unit = object.__new__(LayerUnit)
    unit._key, unit._weight = type("Key", (), {"kind": "conv"})(), weight
    unit._others = [((None, 2, 1), {})]
    terms = torch.cat(list(unit.summed([x])))
    expected = torch.nn.functional.conv2d(x.flatten(0, 1), weight, None, 2, 1)
    assert torch.allclose(terms @ weight.flatten(1).T, expected.permute(0, 2, 3, 1).flatten(0, 2), atol=1e-5)
    unit._others = [((None, 1, 1, 1, 3), {})]
    assert not list(unit.summed([x]))
