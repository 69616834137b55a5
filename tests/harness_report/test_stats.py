"""The statistics against straightforward formulas, and their properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, ttest_rel

from harness import stats

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def outcomes(seeds: int, images: int):
    return hnp.arrays(bool, (2, seeds, images))


def discordant(only_a: int, only_b: int, both: int = 5) -> tuple[np.ndarray, np.ndarray]:
    a = np.array([True] * only_a + [False] * only_b + [True] * both)
    b = np.array([False] * only_a + [True] * only_b + [True] * both)
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (8, 1), (3, 3), (2, 11), (40, 20)])
def test_mcnemar_is_the_doubled_binomial_tail(only_a: int, only_b: int) -> None:
    n, k = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert stats.mcnemar(*discordant(only_a, only_b)) == pytest.approx(expected, rel=1e-9)


@given(outcomes(1, 40))
def test_mcnemar_is_symmetric_and_the_one_seed_case_of_the_paired_test(ab: np.ndarray) -> None:
    (a,), (b,) = ab
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert stats.paired_test(a, b) == pytest.approx(stats.mcnemar(a, b), rel=1e-9)


@given(outcomes(3, 8))
def test_paired_test_equals_enumeration_of_all_signs(ab: np.ndarray) -> None:
    a, b = ab
    d = a.sum(axis=0).astype(int) - b.sum(axis=0).astype(int)
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean([s >= abs(d.sum()) for s in sums])
    assert stats.paired_test(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert stats.paired_test(a, b) == pytest.approx(stats.paired_test(b, a), rel=1e-9)


def test_repeating_a_seed_adds_no_evidence() -> None:
    a, b = discordant(12, 3)
    once = stats.paired_test(a, b)
    assert stats.paired_test(np.stack([a] * 3), np.stack([b] * 3)) == pytest.approx(once, rel=1e-9)


def test_paired_test_on_many_images_is_close_to_the_normal_approximation() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((3, 20_000)) < 0.801, generator.random((3, 20_000)) < 0.798
    d = (a.sum(axis=0) - b.sum(axis=0, dtype=int)).astype(float)
    z = abs(d.sum()) / np.sqrt((d**2).sum())
    assert stats.paired_test(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_outcomes_of_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.mcnemar([True, False], [True])


def test_holm_golden() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])


@given(P_VALUES)
def test_holm_keeps_order_and_never_lowers(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_order(p: list[float], random) -> None:
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_array_equal(stats.holm(np.array(p)[order]), stats.holm(p)[order])


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (1830, 2000), (10, 10)])
def test_wilson_formula(correct: int, total: int) -> None:
    z, p = 1.959963984540054, correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    assert stats.wilson(correct, total) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_detectable_difference() -> None:
    # 3 % of 50,000 images differ: standard error 0.077 points, times 1.96 + 0.84
    assert stats.detectable_difference(50_000, 0.03) == pytest.approx(0.00217, abs=1e-5)
    # Of two methods that nearly agree, the difference cannot be more than the images on which they do not.
    z = norm.ppf(0.975) + norm.ppf(0.8)
    for discordant in (0.0, 0.004, 0.015):
        assert stats.detectable_difference(500, discordant) == pytest.approx(z**2 / 500)
    assert stats.detectable_difference(500, 0.02) == pytest.approx(z * (0.02 / 500) ** 0.5)


def test_discordance() -> None:
    a, b = discordant(2, 3, both=5)
    assert stats.discordance(a, b) == 0.5
    assert stats.discordance([a, a], [b, a]) == pytest.approx(0.125)


def mean_of(scores: np.ndarray) -> stats.Metric:
    """The mean of per-image scores, in points, as a metric of resampled images."""
    return lambda weights: 100 * (weights @ scores) / weights.sum(axis=1)


def test_the_bootstrap_test_agrees_with_a_paired_t_test_where_the_metric_is_a_mean() -> None:
    generator = np.random.default_rng(1)
    a = generator.random(300)
    b = a - 0.01 + 0.1 * generator.standard_normal(300)
    first, second = (stats.resample(mean_of(scores), 300) for scores in (a, b))
    difference, error, p_value = stats.bootstrap_test([first], [second])
    assert difference == pytest.approx(100 * (a - b).mean())
    assert error == pytest.approx(100 * (a - b).std() / math.sqrt(300), rel=0.1)
    assert p_value == pytest.approx(ttest_rel(a, b).pvalue, abs=0.05)
    assert stats.bootstrap_test([second], [first]) == (-difference, error, p_value)
    assert stats.bootstrap_test([first], [first]) == (0.0, 0.0, 1.0)


def test_the_bootstrap_test_averages_seeds_before_it_looks_at_images() -> None:
    generator = np.random.default_rng(2)
    a = [stats.resample(mean_of(generator.random(200)), 200) for _ in range(3)]
    b = [stats.resample(mean_of(generator.random(200)), 200) for _ in range(3)]
    difference, error, _ = stats.bootstrap_test(a, b)
    assert difference == pytest.approx(np.mean([x.value for x in a]) - np.mean([x.value for x in b]))
    assert error < stats.bootstrap_test(a[:1], b[:1])[1]  # independent here, so the mean of three is surer
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.bootstrap_test(a, [stats.resample(mean_of(generator.random(100)), 100)] * 3)
