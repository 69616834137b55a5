"""AdaLog against its formulas, written out plainly."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.requirements import unsuited
from methods.calibrators.adalog.calibrator import AdaLogSearch
from methods.calibrators.adalog.errors import InputErrors, ProductErrors, WeightErrors
from methods.calibrators.adalog.factors import LogFactor, UniformFactor
from methods.calibrators.adalog.info import INFO as CALIBRATOR
from methods.calibrators.adalog.info import AdalogOptions
from methods.calibrators.adalog.quantizer import AdaLog, levels, table
from methods.calibrators.adalog.search import Axis, combine
from methods.core.graph.trace import trace
from methods.core.numerics.functions import GELU_MINIMUM as GELU
from methods.core.numerics.granularity import PER_TENSOR, PerChannel
from methods.core.numerics.quantizers import Uniform


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the quantizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_table_is_a_rounded_power_of_two(bits):
    found = table(bits)
    assert len(found) == 37
    for j in range(37):
        steps = 2 ** (bits + 1) - 2
        assert float(found[j]) == pytest.approx(round(2 ** (-j / 37) * steps) / steps, rel=1e-12)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("q", "scale", "shift"), [(10, 1.0, 0.0), (37, 0.7, 0.0), (53, 2.0, GELU), (138, 1.0, GELU)])
@pytest.mark.parametrize("extra", [0, 1])
def test_codes_and_values_equal_the_formula(bits, q, scale, shift, extra):
    x = functional.gelu(values(2000) * 2) if shift else torch.softmax(values(40, 50) * 3, -1).flatten()
    codes = 2**bits - 1 + extra
    quantizer = AdaLog(torch.tensor(scale), torch.tensor(q), bits, codes, shift)
    t = table(bits).tolist()
    for value, got in zip(x.double().tolist(), quantizer(x).tolist(), strict=True):
        exact = -math.log2((value + shift) / scale) * 37 / q
        n = max(0, round(exact))
        expected = 0.0 if n >= codes else scale * 2.0 ** -(n * q // 37) * t[n * q % 37]
        if abs(exact - math.floor(exact) - 0.5) > 1e-3:  # float32 may fall to either side of a half
            assert got == pytest.approx(expected - shift, abs=1e-6)
    assert len(quantizer(x).unique()) <= 2**bits + extra
    assert float(quantizer.low) == pytest.approx(-shift)
    assert float(quantizer.high) == pytest.approx(scale - shift)


def test_base_two_and_root_two_are_special_cases():
    x = torch.softmax(values(40, 50) * 3, -1)
    two = AdaLog(torch.tensor(1.0), torch.tensor(37), 4, 15)(x)
    expected = torch.exp2(-(-x.log2()).round())
    assert torch.equal(two[expected > 2**-14.5], expected[expected > 2**-14.5])
    assert levels(torch.tensor([37, 74]), 4, 3).tolist() == [[1, 0.5, 0.25, 0], [1, 0.25, 0.0625, 0]]


def test_subtracting_the_shift_is_the_papers_bias_reparameterisation():
    weight, bias = values(6, 20, seed=1), values(6, seed=2)
    x = functional.gelu(values(30, 20))
    quantizer = AdaLog(torch.tensor(2.0), torch.tensor(30), 4, 15, GELU)
    codes = quantizer(x) + GELU  # what the integer form holds
    moved = bias - GELU * weight.sum(1)
    assert torch.allclose(
        functional.linear(quantizer(x), weight, bias), functional.linear(codes, weight, moved), atol=1e-5
    )


# --- errors of candidates -------------------------------------------------------------------------------------------


def candidates(factor, k: int = 5, seed: int = 3):
    """`k` arbitrary pairs around the factor's own."""
    a, b = factor.parameters
    wobble = 1 + 0.2 * values(k, len(a), seed=seed).abs()
    return (a * wobble).round() if isinstance(factor, LogFactor) else a * wobble, b.expand(k, len(b)).clone()


def with_parameters(factor, a, b):
    factor.parameters = a, b
    return factor.quantizer()


@pytest.mark.parametrize("outputs", [4, 30])  # fewer and more than inputs
def test_errors_of_a_layer_equal_its_output_error_but_for_a_constant(outputs):
    x, weight = functional.gelu(values(200, 12)), values(outputs, 12, seed=1)
    inputs = [UniformFactor.of(x, 4, PER_TENSOR, 16), LogFactor.activation(x, 4, 15, GELU, 32)]
    own = UniformFactor.of(weight, 4, PerChannel(0), 16)
    for factor in inputs:
        rounded, exact = factor.quantizer()(x), x @ weight.T
        a, b = candidates(own)
        got = WeightErrors(own, weight, x, rounded)(a, b)
        expected = torch.stack(
            [(rounded @ with_parameters(own, a[i], b[i])(weight).T - exact).square().sum(0) for i in range(len(a))]
        )
        assert torch.allclose(got - got[0], expected - expected[0], rtol=1e-3, atol=1e-2)

        fixed = own.quantizer()(weight)
        a, b = candidates(factor)
        got = InputErrors(factor, x, weight, fixed)(a, b)[:, 0]
        expected = torch.stack(
            [(with_parameters(factor, a[i], b[i])(x) @ fixed.T - exact).square().sum() for i in range(len(a))]
        )
        assert torch.allclose(got - got[0], expected - expected[0], rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("chunk", [2**23, 700])
@pytest.mark.parametrize("granularity", [PER_TENSOR, PerChannel(1)])
def test_errors_of_a_product_equal_its_output_error_by_head(granularity, chunk, monkeypatch):
    monkeypatch.setattr("methods.calibrators.adalog.errors._CHUNK", chunk)
    a, b = torch.softmax(values(3, 2, 9, 7) * 2, -1), values(3, 2, 7, 5, seed=1)
    left, right = LogFactor.softmax(a, 4, 15), UniformFactor.of(b, 4, granularity, 16)
    first, second = candidates(left)
    got = ProductErrors(left, a, b, a @ b, left=True)(first, second)
    for i in range(len(first)):
        expected = (with_parameters(left, first[i], second[i])(a) @ b - a @ b).square().sum()
        assert float(got[i, 0]) == pytest.approx(float(expected), rel=1e-4)
    first, second = candidates(right)
    got = ProductErrors(right, b, a, a @ b, left=False)(first, second)
    for i in range(len(first)):
        error = (a @ with_parameters(right, first[i], second[i])(b) - a @ b).square()
        expected = error.sum((0, 2, 3)) if right.granularity != PER_TENSOR else error.sum()[None]
        assert torch.allclose(got[i], expected, rtol=1e-4)


# --- the search -----------------------------------------------------------------------------------------------------


def test_the_search_finds_the_minimum_of_each_group():
    """Two bowls, one for each group; the integer parameter stays whole."""
    centre = torch.tensor([[3.217, 0.6], [7.0, 12.0]])

    def score(a, b):
        return (a - centre[0]).square() + 0.1 * (b - centre[1]).square() + 0.05 * (a - centre[0]) * (b - centre[1])

    first = Axis(torch.linspace(0, 4, 8)[:, None], torch.tensor([2 / 7]), 0, 4)
    second = Axis(torch.arange(16.0)[:, None], torch.tensor([1.0]), 0, 15, integer=True)
    start = torch.zeros(2), torch.zeros(2)
    errors = []
    for steps in (0, 2, 6):
        a, b = combine(score, first, second, start, keep=16, steps=steps, ring=True)
        errors.append(score(a[None], b[None])[0])
        assert torch.equal(b, b.round())
    assert all((late <= early).all() for early, late in itertools.pairwise(errors))
    assert torch.allclose(a, centre[0], atol=0.02)
    assert torch.equal(b, centre[1])


def test_the_start_is_kept_if_nothing_is_better():
    axis = Axis(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5]), 0, 4)
    start = torch.tensor([0.123]), torch.tensor([3.21])

    def score(a, b):
        return (a - start[0]).abs() + (b - start[1]).abs()

    assert combine(score, axis, axis, start, keep=2, steps=0, ring=False) == start


def test_softmax_takes_the_best_of_all_bases():
    a, b = torch.softmax(values(2, 2, 20, 20) * 2, -1), values(2, 2, 20, 8, seed=1)
    factor = LogFactor.softmax(a, 4, 15)
    errors = ProductErrors(factor, a, b, a @ b, left=True)
    q, _ = combine(errors, *factor.axes, factor.parameters, keep=0, steps=0, ring=False)
    every = torch.arange(10, 139.0)[:, None]
    assert int(q) == int(every[errors(every, torch.ones_like(every)).argmin()])


# --- the calibrator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_kinds_of_quantizers_follow_the_data_flow(name):
    model = tiny_model(name)
    options = AdalogOptions(rounds=1, steps=1, tokens=64)
    quantized = AdaLogSearch(options).calibrate(model, images(), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    graph = trace(model)
    for (key, slot), quantizer in quantized.activations.items():
        kinds = {k.kind for k in graph.by_key[key].operands[slot].ops}
        assert isinstance(quantizer, AdaLog) == (kinds in ({"softmax"}, {"activation"}))
        if kinds == {"softmax"}:
            assert (quantizer.shift, float(quantizer.scale)) == (0.0, 1.0)
        elif kinds == {"activation"}:
            assert quantizer.shift == GELU
        elif key.kind == "matmul":
            assert len(quantizer.scale) == graph.by_key[key].shape[1]  # heads
        else:
            assert quantizer.axis is None


def test_inputs_of_convolutions_stay_uniform():
    """They have 8 bits at every precision; the logarithm is for the second layer of an MLP."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.vit = tiny_model("vit").net
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = functional.relu(self.second(functional.relu(self.first(x)))).mean((2, 3))
            return self.vit(x) + self.last(functional.relu(features)).sum(1, keepdim=True)

    torch.manual_seed(0)
    model = dataclasses.replace(tiny_model("vit"), net=Stem().eval().requires_grad_(False))
    options = AdalogOptions(rounds=1, steps=1, tokens=64)
    quantized = AdaLogSearch(options).calibrate(model, images(), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    kinds = {key: type(q) for (key, _), q in quantized.activations.items() if key.kind in {"conv", "linear"}}
    assert {kind for key, kind in kinds.items() if key.kind == "conv"} == {Uniform}
    assert sum(kind is AdaLog for kind in kinds.values()) == 3  # the last layer, and two of MLPs


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("label", CALIBRATOR.ablations)
def test_every_option_gives_a_model(name, label):
    model = tiny_model(name)
    options = AdalogOptions(**{"rounds": 1, "steps": 1, "tokens": 64, **CALIBRATOR.ablations[label]})
    quantized = AdaLogSearch(options).calibrate(model, images(), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    assert torch.isfinite(quantized(images(3, 5))).all()
    assert all(low <= 0 <= high for low, high in quantized.summary.activation_ranges.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_is_close_at_eight_bits_and_less_so_at_four(name):
    model = tiny_model(name)
    x = images(8, 5)
    errors = {}
    for bits, rounds in ((8, 1), (4, 2)):
        options = AdalogOptions(rounds=rounds, steps=3)
        kwargs = {"spec": BitSpec(bits, bits), "scheme": "matmul", "ctx": FakeContext()}
        quantized = AdaLogSearch(options).calibrate(model, images(16), **kwargs)
        errors[bits] = float((quantized(x) - model.net(x)).square().mean() / model.net(x).var())
    assert errors[8] < 0.02
    assert errors[8] < errors[4]


def test_full_is_skipped_with_a_reason():
    method = Catalog.default().resolve("adalog")
    assert "matmul" in (unsuited(method, BitSpec(4, 4), "full") or "")
    assert unsuited(method, BitSpec(4, 4), "matmul") is None
