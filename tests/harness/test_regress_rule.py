"""The rule of the gate against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.regress.rule import ALPHA, Limits, detectable, power, seen
from harness.report import stats

COUNTS = st.integers(0, 60)
LIMITS = st.builds(
    Limits,
    images=st.sampled_from([40, 1000, 2000]),
    tolerance=st.sampled_from([0.0, 0.1, 0.3, 1.0, 3.0]),
    repeatable=st.booleans(),
)


def exact_p(up: int, down: int) -> float:
    """Two-sided: twice the tail of a fair coin, at most 1."""
    total, few = up + down, min(up, down)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(few + 1)) / 2**total)


def fails(limits: Limits, up: int, down: int, p: float) -> bool:
    """The rule in words of docs/regression.md."""
    net = limits.tolerance * limits.images / 100
    outside = abs(up - down) > net + 1e-9
    too_many = up + down > max(net, (net / 3) ** 2) + 1e-9
    return (outside and (limits.repeatable or p <= ALPHA)) or too_many


@given(COUNTS, COUNTS)
def test_mcnemar_of_counts_is_that_of_outcomes(up, down):
    old = np.repeat([False, True, True, False], [up, down, 7, 3])
    new = np.repeat([True, False, True, False], [up, down, 7, 3])
    assert stats.mcnemar_of_counts(up, down) == pytest.approx(exact_p(up, down))
    assert stats.mcnemar_of_counts(up, down) == pytest.approx(stats.mcnemar(old, new))


@given(LIMITS, COUNTS, COUNTS, st.floats(0, 1))
def test_the_rule(limits, up, down, p):
    assert limits.fails(up, down, p) == fails(limits, up, down, p)
    assert limits.fails(up, down, p) == limits.fails(down, up, p)  # two-sided


def test_the_rule_on_arrays():
    limits = Limits(2000, 0.3, repeatable=True)
    assert limits.fails([0, 7, 3], [6, 0, 4], [1.0, 1.0, 1.0]).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("tolerance", "net", "flips"),
    [(0.0, 0, 0), (0.1, 2, 2), (0.3, 6, 6), (0.9, 18, 36), (1.5, 30, 100), (3.0, 60, 400)],
)
def test_tolerated_images(tolerance, net, flips):
    limits = Limits(2000, tolerance, repeatable=False)
    assert limits.net == pytest.approx(net)
    assert limits.flips == pytest.approx(flips)


@given(LIMITS, st.integers(0, 30), st.integers(1, 30))
def test_the_detectable_drop_is_the_first_that_fails(limits, flips, cases):
    def fails_at(drop: int) -> bool:
        total = max(flips, drop)
        total += (total - drop) % 2
        up, down = (total - drop) // 2, (total + drop) // 2
        return fails(limits, up, down, min(1.0, cases * exact_p(up, down)))

    first = next((drop for drop in range(1, limits.images + 1) if fails_at(drop)), None)
    found = detectable(limits, flips, cases)
    assert found == (None if first is None else pytest.approx(100 * first / limits.images))


def test_a_rule_that_cannot_fail_says_so():
    assert detectable(Limits(3, 100.0, repeatable=False), 0, 1) is None
    assert seen(Limits(3, 100.0, repeatable=False), 0, 1, 0.8) is None


def test_power_without_flips_is_a_binomial_tail():
    limits = Limits(2000, 0.1, repeatable=True)
    share = 4 / 2000
    tail = 1 - sum(math.comb(2000, k) * share**k * (1 - share) ** (2000 - k) for k in range(3))
    assert power(limits, 0, 20, 0.2) == pytest.approx(tail, abs=0.03)


def test_the_seen_drop_has_its_power():
    for limits, flips in ((Limits(2000, 0.2, repeatable=True), 0), (Limits(2000, 1.5, repeatable=False), 24)):
        drop = seen(limits, flips, 20, 0.8)
        assert drop is not None
        assert power(limits, flips, 20, drop) >= 0.8
        assert power(limits, flips, 20, drop - 0.05) < 0.8
        assert power(limits, flips, 20, 2 * drop) > 0.95
    assert seen(Limits(2000, 1.5, repeatable=False), 24, 20, 0.8) >= 1.5


def test_unchanged_code_elsewhere_passes():
    # Flips as measured between environments, for the tolerances of results/baselines/embedded.toml.
    for tolerance, flips in ((0.9, 8), (3.0, 93), (1.5, 24), (1.5, 23), (2.0, 47)):
        assert power(Limits(2000, tolerance, repeatable=False), flips, 22, 0.0) < 0.01
