"""Quantizers and observers against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.core.numerics.granularity import PER_TENSOR, PerChannel
from methods.core.numerics.observers import OBSERVERS, Ema, MinMax, Omse, quantiles
from methods.core.numerics.percentile import ends
from methods.core.numerics.quantizers import Uniform, weight_quantizer
from methods.core.options import PercentileOptions

FLOATS = st.floats(-100, 100, width=32)
VALUES = st.lists(FLOATS, min_size=2, max_size=40)
BITS = st.integers(2, 8)
MAKERS = st.sampled_from([Uniform.asymmetric, Uniform.symmetric])


@settings(max_examples=150, deadline=None)
@given(VALUES, BITS, MAKERS)
def test_code_count_integer_zero_point_and_idempotence(values, bits, make):
    x = torch.tensor(values)
    q = make(x.min(), x.max(), bits)
    grid = q(torch.linspace(float(q.low) - 1, float(q.high) + 1, 5000))
    assert len(grid.unique()) <= 2**bits
    assert q.zero_point.dtype == torch.int32
    assert q.qmin <= int(q.zero_point) <= q.qmax
    once = q(x)
    assert torch.equal(q(once), once)
    assert torch.equal(q(torch.zeros(3)), torch.zeros(3))  # zero is represented exactly


@settings(max_examples=100, deadline=None)
@given(VALUES, BITS)
def test_asymmetric_error_is_at_most_half_a_step_inside_the_range(values, bits):
    x = torch.tensor(values)
    q = Uniform.asymmetric(x.min(), x.max(), bits)
    # The rounded zero point can shift the range by half a step, which clips one end by as much.
    assert float((q(x) - x).abs().max()) <= float(q.scale) * 1.01 + 1e-6


@pytest.mark.parametrize("axis", [None, 0])
def test_gradient_passes_straight_through_inside_the_range(axis):
    x = torch.tensor([[-9.0, -0.4, 0.3], [0.9, 0.11, 9.0]], requires_grad=True)
    ends = (
        (torch.tensor(-1.0), torch.tensor(1.0)) if axis is None else (torch.tensor([-1.0, -1]), torch.tensor([1.0, 1]))
    )
    q = Uniform.asymmetric(*ends, 4, PER_TENSOR if axis is None else PerChannel(axis))
    y = q(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 1, 1], [1, 1, 0]]))
    assert torch.allclose(y.detach(), q(x.detach()), atol=1e-6)  # the same values as without gradient


def test_asymmetric_equals_the_formula():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    low, high = x.min().numpy(), x.max().numpy()
    scale = (high - low) / 15
    zero = np.clip(np.round(-low / scale), 0, 15)
    expected = (np.clip(np.round(x.numpy() / scale + zero), 0, 15) - zero) * scale
    assert np.allclose(Uniform.asymmetric(x.min(), x.max(), 4)(x).numpy(), expected, atol=1e-6)


def test_symmetric_divisor_is_a_half_integer():
    x = torch.tensor([-1.0, 0.3, 2.0])
    q = Uniform.symmetric(x.min(), x.max(), 4)
    assert float(q.scale) == pytest.approx(2.0 / 7.5)
    assert (q.qmin, q.qmax) == (-8, 7)
    assert float(q(x)[2]) == pytest.approx(7 * 2.0 / 7.5)  # the largest value is pulled in


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_quantized_channel_by_channel(symmetric):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    got = weight_quantizer(weight, 4, symmetric=symmetric)(weight)
    make = Uniform.symmetric if symmetric else Uniform.asymmetric
    for channel, row in zip(got, weight, strict=True):
        assert torch.allclose(channel, make(row.min(), row.max(), 4)(row), atol=1e-7)


def test_constant_tensors_survive():
    for value in (0.0, 3.0, -2.0):
        x = torch.full((4,), value)
        assert torch.allclose(Uniform.asymmetric(x.min(), x.max(), 4)(x), x)


def test_the_percentile_that_methods_offer_is_fq_vits():
    """A hundredth of the way to each further batch; `FQ-ViT, models/ptq/observer/percentile.py`."""
    observer, low, high = OBSERVERS["percentile"](), 0.0, 0.0
    for number in range(3):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(number)) * (number + 1)
        observer.update(x)
        a, b = np.quantile(x.double().numpy(), [1e-5, 1 - 1e-5])
        low, high = (a, b) if number == 0 else (low + 0.01 * (a - low), high + 0.01 * (b - high))
    assert [float(end) for end in observer.range(8)] == pytest.approx([low, high], rel=1e-4)
    defaults = PercentileOptions()
    assert (defaults.momentum, defaults.quantile) == (0.01, 0.99999)


def test_minmax_and_ema_follow_their_recursions():
    batches = [torch.tensor([0.0, 1.0]), torch.tensor([-3.0, 5.0]), torch.tensor([0.5, 0.6])]
    minmax, ema = MinMax(), Ema(0.1)
    for batch in batches:
        minmax.update(batch)
        ema.update(batch)
    assert [float(v) for v in minmax.range(8)] == [-3.0, 5.0]
    low = 0.0 + 0.1 * (-3.0 - 0.0)
    high = 1.0 + 0.1 * (5.0 - 1.0)
    expected = [low + 0.1 * (0.5 - low), high + 0.1 * (0.6 - high)]
    assert [float(v) for v in ema.range(8)] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.sampled_from([0.9, 0.99, 0.99999]))
def test_quantiles_equal_numpys(values, q):
    low, high = quantiles(torch.tensor(values), q)
    array = np.array(values, dtype=np.float32)
    assert float(low) == pytest.approx(float(np.quantile(array, 1 - q)), abs=1e-3)
    assert float(high) == pytest.approx(float(np.quantile(array, q)), abs=1e-3)


@pytest.mark.parametrize("percentiles", [(0.999, 0.9999, 1.0), (0.9, 0.97), (0.5,)], ids=["few", "many", "median"])
@pytest.mark.parametrize("values", [3, 5000])
def test_ends_are_those_of_sorted_rows(values, percentiles):
    rows = torch.randn(4, values, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with equal values
    rows[1] = 2.0
    ordered = rows.sort(1).values

    def at(p):
        below = int(p * (values - 1))
        above = min(below + 1, values - 1)
        return torch.lerp(ordered[:, below], ordered[:, above], p * (values - 1) - below)

    low, high = ends(rows, percentiles)
    assert torch.equal(low, torch.stack([at(1.0 - p) for p in percentiles]))
    assert torch.equal(high, torch.stack([at(p) for p in percentiles]))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_omse_finds_the_best_of_its_candidates(bits):
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    x[0] = 12.0  # an outlier that min-max would cover
    observer = Omse()
    observer.update(x[:7000])
    observer.update(x[7000:])
    errors = []
    for i in range(90):
        shrink = 1 - 0.01 * i
        q = Uniform.asymmetric(x.min() * shrink, x.max() * shrink, bits)
        errors.append(float((q(x) - x).square().mean()))
    got = float((Uniform.asymmetric(*observer.range(bits), bits)(x) - x).square().mean())
    # The histogram of 4096 bins may pick a neighbour of the best candidate.
    assert got <= min(errors) * 1.02
    assert got < 0.9 * errors[0] or bits == 8
