"""Microscaling formats: values against the OCP specification's tables, blocks against plain loops, sites and audit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model

from harness.api.errors import UsageError
from harness.api.formats import MICROSCALING, Format
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.run.checks import summarise
from methods.core.audit import audit
from methods.core.deployment import deployed
from methods.core.graph.channels import channel_axes
from methods.core.graph.trace import trace
from methods.core.numerics.microscaling import Element, blocks_of, cut, foreign_blocks, in_blocks, joined

# Name -> exponent bits, mantissa bits, bias, largest and smallest positive value (OCP MX v1.0, section 5.3).
TABLE = {
    "MXFP8E5M2": (5, 2, 15, 57344.0, 2.0**-16),
    "MXFP8": (4, 3, 7, 448.0, 2.0**-9),
    "MXFP6E3M2": (3, 2, 3, 28.0, 0.0625),
    "MXFP6": (2, 3, 1, 7.5, 0.125),
    "MXFP4": (2, 1, 1, 6.0, 0.5),
}
MXFP4, MXINT8 = MICROSCALING["MXFP4"], MICROSCALING["MXINT8"]


def decoded(code: int, exponent: int, mantissa: int, bias: int) -> float:
    """The value of a code, by the formulas of the specification's section on floating-point elements."""
    e, m = code >> mantissa & (1 << exponent) - 1, code & (1 << mantissa) - 1
    sign = -1.0 if code >> exponent + mantissa else 1.0
    if (exponent, mantissa) == (5, 2) and e == 31:
        return sign * math.inf if m == 0 else math.nan
    if (exponent, mantissa) == (4, 3) and e == 15 and m == 7:
        return math.nan
    return sign * (2.0 ** (1 - bias) * m / 2**mantissa if e == 0 else 2.0 ** (e - bias) * (1 + m / 2**mantissa))


def values(name: str) -> torch.Tensor:
    """All finite values of a format, ascending."""
    if name.startswith("MXINT"):
        bits = MICROSCALING[name].bits
        return torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1)) * 2.0 ** (2 - bits)
    exponent, mantissa, bias, *_ = TABLE[name]
    found = [decoded(code, exponent, mantissa, bias) for code in range(2 ** (1 + exponent + mantissa))]
    return torch.tensor(sorted({v for v in found if math.isfinite(v)}))


@pytest.mark.parametrize("name", MICROSCALING)
def test_every_code_is_a_value_and_all_else_goes_to_the_nearest_even_one(name):
    element, known = Element.of(MICROSCALING[name]), values(name)
    if name in TABLE:
        assert (element.largest, known[known > 0].min().item()) == TABLE[name][3:]
    assert element.largest == known.max()
    assert torch.equal(element.rounded(known), known)
    middles = (known[1:] + known[:-1]) / 2
    x = torch.cat([known[:-1] + (known[1:] - known[:-1]) * share for share in (0.25, 0.75)])
    assert torch.equal(element.rounded(x), known[(x[:, None] - known).abs().argmin(1)])
    # A half goes to the neighbour with an even code, which is the one that is a multiple of two steps.
    found, step = element.rounded(middles), known[1:] - known[:-1]
    assert torch.equal((found / step).remainder(2.0), torch.zeros_like(found))
    assert torch.equal((found - middles).abs(), step / 2)
    assert element.rounded(torch.tensor([1e9, -1e9])).tolist() == [element.largest, -element.largest]


@pytest.mark.parametrize(("name", "dtype"), [("MXFP8", "float8_e4m3fn"), ("MXFP8E5M2", "float8_e5m2")])
def test_eight_bits_are_those_of_torch(name, dtype):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-6, 2, 4000)
    assert torch.equal(Element.of(MICROSCALING[name]).rounded(x), x.to(getattr(torch, dtype)).float())


def plain(block: list[float], name: str) -> list[float]:
    """One block by the specification's words, with no tensor."""
    known, largest = values(name).tolist(), max(map(abs, block))
    if largest == 0.0:
        return block
    top = math.floor(math.log2(max(known)))
    scale = 2.0 ** min(127, max(-127, math.floor(math.log2(largest)) - top))
    return [min(known, key=lambda v, x=x: abs(v - x / scale)) * scale for x in block]


@pytest.mark.parametrize("name", MICROSCALING)
def test_blocks_against_a_plain_loop(name):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 70, generator=generator) * 10.0 ** torch.linspace(-8, 8, 70)
    x[1, :32] = 0.0
    expected = [[v for i in (0, 32, 64) for v in plain(row[i : i + 32], name)] for row in x.tolist()]
    found = in_blocks(x, MICROSCALING[name], -1)
    assert torch.equal(found, torch.tensor(expected))
    assert torch.equal(in_blocks(x.T, MICROSCALING[name], -2), found.T)
    assert torch.equal(in_blocks(found, MICROSCALING[name], -1), found)  # whatever is stored stays as it is


def test_scales_end_where_e8m0_does():
    x = torch.tensor([[1e-38, -3e38]]).T
    found = in_blocks(x, MXINT8, -1)
    assert torch.allclose(found, x, rtol=0.01)
    assert in_blocks(torch.tensor([2.0**-149]), MICROSCALING["MXFP8E5M2"], -1).item() == 0.0  # 2^-142 would be needed


def test_blocks_are_cut_and_joined_along_any_axis():
    x = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    assert blocks_of(x, -2, 2) == 18
    assert torch.equal(joined(cut(x, -2, 2), x, -2), x)
    assert torch.equal(joined(cut(x[0, 0], -3, 2), x[0, 0], -3), x[0, 0])  # an axis that it does not have


@pytest.mark.parametrize("name", ["MXFP4", "MXFP8", "MXINT4"])
def test_foreign_blocks(name):
    """Values under any power of two are of the format; a third of them, or one value beside the grid, are not."""
    known, stored = values(name), MICROSCALING[name]
    rows = known[torch.randint(len(known), (50, 32), generator=torch.Generator().manual_seed(2))] * 0.125
    small = rows.clamp(-known.max() / 100, known.max() / 100)
    assert not foreign_blocks(rows, stored).any()
    assert not foreign_blocks(in_blocks(small, stored, -1) * 2, stored).any()
    assert foreign_blocks(torch.randn(50, 32), stored).all()
    rows[:, 3] *= 1 + 2.0**-9
    assert foreign_blocks(rows, stored)[rows[:, 3].abs() > rows.abs().amax(1) / 4].all()


def quantized(network: str, bits: str, scheme: str = "full"):
    built = Catalog.default().resolve("noise+minmax", "quick").build()
    spec = BitSpec.parse(bits)
    return built.quantize(tiny_model(network), spec=spec, scheme=scheme, calib=None, ctx=FakeContext(0)), spec


@pytest.mark.parametrize(
    ("network", "bits", "scheme"),
    [
        ("vit", "MXFP4A8", "full"),
        ("swin", "MXINT8", "full"),
        ("vit", "W4AMXFP6", "matmul"),
        ("swin", "MXFP4", "matmul"),
    ],
)
def test_sites_hold_values_of_their_format(network, bits, scheme):
    model, (found, spec) = tiny_model(network), quantized(network, bits, scheme)
    output, findings = audit(model, found, images(3), scheme=scheme, spec=spec, thorough=True)
    assert not findings
    assert not torch.equal(output, model.net(images(3)))
    weights = {str(layer.format) for layer in found.summary.layers}
    assert weights == {str(spec.weights or Format(4, granularity="channel"))}
    kept = summarise("mine", found.summary)
    assert (kept.bit_operations is None) == ("FP" in bits)
    assert kept.effective_weight_bits > spec.weight
    if spec.activations is not None:
        assert kept.effective_activation_bits > kept.mean_activation_bits + 0.25
        # The convolution's input keeps its eight bits in scheme `matmul`.
        of_sites = set(kept.activation_formats.values()) - {"int8/tensor/float32"}
        assert of_sites == {str(spec.activations)}


def test_effective_bits_count_the_scales():
    found, _ = quantized("vit", "MXINT4")
    sizes = dict(tiny_model("vit").net.named_parameters())
    scales = sum(p.shape[0] * -(-p[0].numel() // 32) for p in (sizes[layer.name] for layer in found.summary.layers))
    values = sum(layer.size for layer in found.summary.layers)
    assert summarise("mine", found.summary).effective_weight_bits == pytest.approx(4 + 8 * scales / values)


def test_the_audit_finds_values_of_another_format():
    model, (found, _) = tiny_model("vit"), quantized("vit", "MXFP6")
    for bits, what in (("MXFP4AMXFP6", "weight"), ("MXFP6AMXFP4", "site")):
        spec = BitSpec.parse(bits)
        asked = replace(spec, weight=6, activation=6)  # as if widths did not tell
        _, findings = audit(model, found, images(3), scheme="full", spec=asked, thorough=True)
        assert any(what in finding and "none that e2m1/group32/e8m0 has" in finding for finding in findings)


def test_an_export_is_refused():
    found, _ = quantized("vit", "W8AMXINT8")
    with pytest.raises(UsageError, match=r"stored in blocks .*export a precision of plain integers"):
        deployed(found, tiny_model("vit"))


@pytest.mark.parametrize("network", ["vit", "swin"])
def test_channels_are_where_layers_sum(network):
    """Transformers have them last, but for the map of the patch embedding's convolution."""
    graph = trace(tiny_model(network))
    assert {key.kind: axis for key, axis in channel_axes(graph).items() if axis != -1} == {"conv": -3}
