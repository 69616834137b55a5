"""The statistics against straightforward formulas, and their properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import t as student
from scipy.stats import ttest_rel

from harness.report import stats

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


def test_the_p_value_is_the_level_at_which_the_difference_leaves_its_margin() -> None:
    """Student's test where images vary not at all, its normal limit where seeds do not, and wider between the two."""
    assert stats.seeded_p(3.0, 1.0, 0.0, 3, 500) == pytest.approx(2 * student.sf(3.0, 2), rel=1e-6)
    assert stats.seeded_p(-3.0, 0.0, 1.0, 3, 500) == pytest.approx(2 * student.sf(3.0, 499), rel=1e-6)
    both = stats.seeded_p(3.0, 0.5, 0.5, 3, 500)
    assert both == pytest.approx(stats.seeded_p(-3.0, 0.5, 0.5, 3, 500))
    assert float(stats.margin(0.5, 0.5, 3, 500, both)) == pytest.approx(3.0)
    assert stats.seeded_p(3.0, 0.0, 1.0, 3, 500) < both < stats.seeded_p(3.0, 1.0, 0.0, 3, 500)
    assert stats.seeded_p(0.0, 0.0, 0.0, 3, 500) == 1.0
    assert stats.seeded_p(3.0, 0.0, 0.0, 3, 500) < 1e-99
    assert stats.seeded_p(3.0, 0.0, 0.0, 3, 1) == stats.seeded_p(3.0, 0.0, 0.0, 1, 500) == 1.0
    assert np.isinf(stats.margin(0.0, 0.0, 1, 500, 0.05))


def test_comparison_of_outcomes_is_the_plain_formulas() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((3, 400)) < 0.8, generator.random((3, 400)) < 0.6
    found = stats.compare_outcomes(a, b)
    by_seed, by_image = 100 * (a.mean(axis=1) - b.mean(axis=1)), 100 * (a.mean(axis=0) - b.mean(axis=0))
    assert found.difference == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.seed_error == pytest.approx(np.std(by_seed, ddof=1) / 3**0.5)
    assert found.image_error == pytest.approx(np.std(by_image, ddof=1) / 20)
    assert found.seeds == 3
    assert found.p_value >= stats.paired_test(a, b)
    one = stats.compare_outcomes(a[:1], b[:1])
    assert one.difference == pytest.approx(100 * (a[0].mean() - b[0].mean()))
    assert np.isnan([one.seed_error, one.p_value]).all()


def test_few_discordant_images_are_counted_and_not_approximated() -> None:
    """Four images of 500 on one side, with every seed: 2 of 16 ways are so one-sided, whatever a normal tail says."""
    a = np.ones((3, 500), dtype=bool)
    b = np.repeat([[False] * 4 + [True] * 496], 3, axis=0)
    assert stats.compare_outcomes(a, b).p_value == pytest.approx(0.125)


def test_the_choice_of_the_best_is_paid_for_by_the_pairs_that_could_have_been_tested() -> None:
    np.testing.assert_allclose(stats.chosen([0.01, 0.5, np.nan], 6), [0.03, 1.0, np.nan])
    np.testing.assert_allclose(stats.chosen([0.01], 2), [0.01])
    np.testing.assert_allclose(stats.chosen([0.01], 0), [0.01])  # a base that was not chosen


def test_detectable_difference() -> None:
    z = 1.959964 + 0.841621
    found = stats.detectable_difference(0.0, 0.01, 3, 100_000)  # over images alone it is a normal test
    assert found == pytest.approx(0.1 * z, rel=1e-3)
    # With as few discordant images as there can be, the difference is that of all of them.
    assert stats.detectable_difference(0.0, 0.0, 3, 500) == pytest.approx(100 * z**2 / 500, rel=0.02)
    few, many = (stats.detectable_difference(25 / seeds, 0.5, seeds, 2000) for seeds in (3, 10))
    assert few > 3 * many  # not only by the square root: two degrees of freedom are few
    assert stats.detectable_difference(1.0, 0.5, 3, 2000, alpha=0.005) > stats.detectable_difference(1.0, 0.5, 3, 2000)
    assert np.isinf(stats.detectable_difference(1.0, 0.5, 1, 2000))


def test_a_detectable_difference_is_found_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    seed_variance, image_variance, runs = 0.6, 0.3, 20_000
    true = stats.detectable_difference(seed_variance, image_variance, 4, 5000)
    seen = generator.normal(true, (seed_variance + image_variance) ** 0.5, runs)
    estimated = seed_variance * generator.chisquare(3, runs) / 3
    found = np.abs(seen) > stats.margin(estimated, image_variance, 4, 5000, 0.05)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def mean_of(scores: np.ndarray) -> stats.Metric:
    """The mean of per-image scores, in points, as a metric of resampled images."""
    return lambda weights: 100 * (weights @ scores) / weights.sum(axis=1)


def test_the_bootstrap_test_agrees_with_a_paired_t_test_where_the_metric_is_a_mean() -> None:
    generator = np.random.default_rng(1)
    a = generator.random(300)
    b = a - 0.01 + 0.1 * generator.standard_normal(300)
    first, second = (stats.resample(mean_of(scores), 300) for scores in (a, b))
    found, back = stats.compare_resampled([first] * 2, [second] * 2), stats.compare_resampled([second] * 2, [first] * 2)
    assert found.difference == pytest.approx(100 * (a - b).mean())
    assert found.image_error == pytest.approx(100 * (a - b).std(ddof=1) / math.sqrt(300), rel=0.1)
    assert found.seed_error == 0
    assert found.p_value == pytest.approx(ttest_rel(a, b).pvalue, abs=0.05)
    assert (back.difference, back.image_error) == (-found.difference, found.image_error)
    assert back.p_value == pytest.approx(found.p_value)
    assert stats.compare_resampled([first] * 2, [first] * 2) == stats.Comparison(0.0, 0.0, 0.0, 2, 1.0)


def test_the_bootstrap_test_averages_seeds_before_it_looks_at_images() -> None:
    generator = np.random.default_rng(2)
    a = [stats.resample(mean_of(generator.random(200)), 200) for _ in range(3)]
    b = [stats.resample(mean_of(generator.random(200)), 200) for _ in range(3)]
    found, one = stats.compare_resampled(a, b), stats.compare_resampled(a[:1], b[:1])
    by_seed = [x.value - y.value for x, y in zip(a, b, strict=True)]
    assert found.difference == pytest.approx(np.mean(by_seed))
    assert found.seed_error == pytest.approx(np.std(by_seed, ddof=1) / 3**0.5)
    assert found.image_error < one.image_error  # independent here, so the mean of three is surer
    assert np.isnan([one.seed_error, one.p_value]).all()
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.compare_resampled(a, [stats.resample(mean_of(generator.random(100)), 100)] * 3)
