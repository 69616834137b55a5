"""Affine quantization at every granularity against the formula, value by value; and that it is written once."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import images, tiny_model

from harness.api.contracts import Grid
from harness.api.spec import BitSpec
from methods.core.audit import audit
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics import affine
from methods.core.numerics.granularity import PER_TENSOR, Granularity, PerBlock, PerChannel, PerGroup, PerHead
from methods.core.numerics.observers import MinMax
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized

METHODS = Path(__file__).parents[2] / "methods"
SHAPE = (4, 6, 8)

# Each granularity with the number of the block that the value at (i, j, k) of a tensor of SHAPE belongs to.
BLOCKS = [
    (PER_TENSOR, lambda i, j, k: 0),
    (PerChannel(0), lambda i, j, k: i),
    (PerChannel(2), lambda i, j, k: k),
    (PerChannel(-2), lambda i, j, k: j),
    (PerHead(1, 3), lambda i, j, k: j // 2),
    (PerHead(2, 2), lambda i, j, k: k // 4),
    (PerGroup(2, 4), lambda i, j, k: (i * 6 + j) * 2 + k // 4),
    (PerGroup(0, 2), lambda i, j, k: (i // 2 * 6 + j) * 8 + k),
    (PerBlock((2, 3, 8)), lambda i, j, k: i // 2 * 2 + j // 3),
    (PerBlock((1, 6, 2)), lambda i, j, k: i * 4 + k // 2),
]
ALL = pytest.mark.parametrize(("granularity", "block"), BLOCKS, ids=[str(each) for each, _ in BLOCKS])


def tensor(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5


def places() -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, SHAPE)))


@ALL
def test_rows_hold_the_values_of_each_block(granularity, block):
    x = tensor()
    expected: dict[int, list[float]] = {}
    for place in places():
        expected.setdefault(block(*place), []).append(float(x[place]))
    assert granularity.rows(x).tolist() == [expected[number] for number in range(len(expected))]
    assert granularity.rows(x.mT.contiguous().mT).tolist() == granularity.rows(x).tolist()


@ALL
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_asymmetric_quantizers_equal_the_formula_to_the_bit(granularity, block, bits):
    x = tensor()
    rows = granularity.rows(x)
    ends = (granularity.stored(each) for each in (rows.amin(1), rows.amax(1)))
    q = Uniform.asymmetric(*ends, bits, granularity)
    got, top = q(x), np.float32(2**bits - 1)
    low, high = np.float32(rows.amin(1).clamp(max=0)), np.float32(rows.amax(1).clamp(min=0))
    for place in places():
        number = block(*place)
        scale = np.maximum((high[number] - low[number]) / top, np.float32(1e-8))
        zero = np.clip(np.round(-low[number] / scale), np.float32(0), top)
        code = np.clip(np.round(np.float32(x[place]) / scale), -zero, top - zero)
        assert np.float32(got[place]) == code * scale
    assert float(q.low) <= float(got.min()) <= float(got.max()) <= float(q.high)
    assert q.low.dim() == q.high.dim() == 0


@ALL
def test_symmetric_quantizers_equal_the_formula_to_the_bit(granularity, block):
    x = tensor()
    rows = granularity.rows(x)
    q = Uniform.symmetric(*(granularity.stored(each) for each in (rows.amin(1), rows.amax(1))), 4, granularity)
    got, magnitude = q(x), np.float32(rows.abs().amax(1))
    for place in places():
        scale = magnitude[block(*place)] / np.float32(7.5)
        assert np.float32(got[place]) == np.clip(np.round(np.float32(x[place]) / scale), -8, 7) * scale


@ALL
def test_candidates_are_each_quantized_by_themselves(granularity, block):
    x, blocks = tensor(), len(granularity.rows(tensor()))
    scales = 0.1 + torch.rand(5, blocks, generator=torch.Generator().manual_seed(1))
    zeros = torch.randint(0, 8, (5, blocks), generator=torch.Generator().manual_seed(2))
    scale, low, high = (granularity.aligned(each, x.shape) for each in (scales, -zeros, 7 - zeros))
    together = affine.fake_quantize(x, scale, low, high)
    for candidate, s, z in zip(together, scales, zeros, strict=True):
        alone = Uniform(granularity.stored(s), granularity.stored(z.int()), 0, 7, granularity)
        assert torch.equal(candidate, alone(x))


@ALL
def test_gradients_pass_inside_the_range_of_each_block(granularity, block):
    x = tensor().requires_grad_()
    rows = granularity.rows(x.detach())
    ends = (granularity.stored(each) for each in (rows.amin(1) / 2, rows.amax(1) / 2))
    q = Uniform.asymmetric(*ends, 4, granularity)
    y = q(x)
    assert torch.allclose(y, q(x.detach()), atol=1e-6)
    y.sum().backward()
    scale, low, high = q.aligned(x.shape)
    codes = (x.detach() / scale).round()
    assert torch.equal(x.grad, ((codes >= low) & (codes <= high)).float())
    assert torch.equal(q.straight_through(x).detach(), q(x.detach()))


def test_codes_and_values_go_back_and_forth():
    x, scale = tensor(), torch.tensor(0.37)
    codes = affine.quantize(x, scale, -3, 4)
    assert codes.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3, 4]
    values = affine.dequantize(codes, scale, -3, 4)
    assert torch.equal(values, affine.fake_quantize(x, scale, -3, 4))
    assert torch.equal(affine.fake_quantize_(x.clone(), scale, -3, 4), values)
    assert torch.equal(affine.dequantize(codes * 2, scale, -3, 4), (codes * 2).clamp(-3, 4) * scale)
    assert affine.to_codes_(torch.tensor([-0.5, 0.5, 1.5, 9.0]), 0, None).tolist() == [0, 0, 2, 9]
    assert torch.equal(x, tensor())  # only the function with an underscore is in place


def test_a_range_away_from_zero_has_a_zero_point_that_is_no_code():
    scale, zero = affine.parameters(torch.tensor([2.0, -3.0]), torch.tensor([5.0, -1.5]), 3, 1e-8)
    assert scale.tolist() == [1.0, 0.5]
    assert zero.tolist() == [-2.0, 6.0]
    assert affine.parameters(torch.tensor(2.0), torch.tensor(2.0), 3, 0.25)[0] == 0.25
    scale, zero = affine.asymmetric_parameters(torch.tensor([2.0, -3.0]), torch.tensor([6.0, -1.5]), 2)
    assert scale.tolist() == [2.0, 1.0]
    assert zero.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (PerHead(1, 4), SHAPE, "not made of whole blocks"),
        (PerGroup(2, 3), SHAPE, "not made of whole blocks"),
        (PerBlock((2, 3)), SHAPE, "not made of whole blocks"),
        (PerBlock((2, 3, 0)), SHAPE, "not made of whole blocks"),
        (PerChannel(3), SHAPE, "has no axis 3"),
        (PerChannel(1), SHAPE, "has 6 blocks .* not 5"),
    ],
)
def test_what_does_not_fit_is_refused(granularity: Granularity, shape, message):
    with pytest.raises(ValueError, match=message):
        granularity.aligned(torch.ones(5), shape)


@pytest.mark.parametrize("granularity", [PerGroup(1, 16), PerBlock((2, 16))], ids=str)
def test_weights_by_group_and_by_block_pass_as_what_they_are(granularity, monkeypatch):
    """A quantized model says which of its weights have grids finer than a channel's, and the audit reads them so."""
    model, spec = tiny_model("vit"), BitSpec(2, 8)
    sites = find_sites(trace(model), "matmul", spec)
    weights = weight_quantizers(model, sites, symmetric=False)
    finer = [s for s in sites.weights if s.parameter.endswith("mlp.fc2.weight")]
    assert finer
    for s in finer:
        rows = granularity.rows(model.net.get_parameter(s.parameter).detach())
        weights[s.parameter] = Uniform.asymmetric(rows.amin(1), rows.amax(1), s.bits, granularity)
    observers = observe(model, images(4), sites, MinMax, 4)
    quantized = Quantized(model.net, sites, weights, activation_quantizers(sites, observers))
    assert quantized.grids == {s.parameter: Grid(group=16) for s in finer}
    assert audit(model, quantized, images(2), scheme="matmul", spec=spec, thorough=True)[1] == []
    monkeypatch.setattr(Quantized, "grids", {})
    assert audit(model, quantized, images(2), scheme="matmul", spec=spec, thorough=True)[1] != []


# --- written once -------------------------------------------------------------------------------------------------

ROUND = {"round", "round_", "rint"}
CLIP = {"clamp", "clamp_", "clip", "clip_", "maximum", "minimum"}
# Rounding and clipping outside affine.py, and why.
ALONE = {
    "calibrators/adalog/search.py": "widths of a search, in whole steps; nothing is quantized",
    "calibrators/microscopiq/outliers.py": "mantissas of floating-point outliers",
    "core/numerics/microscaling.py": "elements with exponents of their own, whose steps differ",
    "core/numerics/straight_through.py": "the gradient needs the code before it is clipped as well",
}


def _names(node: ast.AST) -> set[str]:
    """Methods and functions that are called in an expression."""
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)}


def clipped_roundings(tree: ast.AST) -> list[int]:
    """Lines where something rounded, in the same expression or by a name of the same function, is clipped."""
    found = []
    for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
        rounded = {
            target.id
            for each in ast.walk(function)
            if isinstance(each, ast.Assign) and _outermost(each.value) in ROUND
            for target in each.targets
            if isinstance(target, ast.Name)
        }
        for call in (each for each in ast.walk(function) if isinstance(each, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in CLIP:
                values = [call.func.value, *call.args]
                uses = {each.id for value in values for each in ast.walk(value) if isinstance(each, ast.Name)}
                if any(_names(value) & ROUND for value in values) or uses & rounded:
                    found.append(call.lineno)
    return found


def _outermost(node: ast.AST) -> str | None:
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None


def axis_shapes(tree: ast.AST) -> list[int]:
    """Lines with -1 at one place of a comprehended shape and 1 elsewhere: what `Granularity.aligned` is for."""
    return [
        each.elt.lineno
        for each in ast.walk(tree)
        if isinstance(each, ast.ListComp | ast.GeneratorExp)
        and isinstance(each.elt, ast.IfExp)
        and {ast.unparse(each.elt.body), ast.unparse(each.elt.orelse)} == {"-1", "1"}
    ]


@pytest.mark.parametrize(
    "line",
    [
        "return (x / s).round().clamp(0, 7)",
        "return x.div(s).round_().clamp_(l, h).mul_(s)",
        "return torch.clamp(torch.round(x / s), 0, 7)",
        "return torch.maximum((x / s).round_(), l).minimum(h)",
        "k = (x / s).round()\n    return k.clamp(0, 7)",
        "return ((x / s).round() + z).clamp(0, 7)",
    ],
)
def test_the_search_for_the_formula_finds_it(line):
    assert clipped_roundings(ast.parse(f"def f(x, s, l, h, z):\n    {line}"))


def test_the_formula_is_written_once():
    found = {}
    for path in sorted(METHODS.rglob("*.py")):
        name, tree = path.relative_to(METHODS).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        assert not axis_shapes(tree), name
        if clipped_roundings(tree):
            found[name] = len(clipped_roundings(tree))
    assert found.pop("core/numerics/affine.py") >= 1
    assert set(found) == set(ALONE)
    assert axis_shapes(ast.parse("[-1 if i == axis else 1 for i in range(3)]"))
