"""Statistics of the report and the gate: pure functions on arrays.

Methods are evaluated with the same seeds on the same images, so they are compared pair by pair. `compare_outcomes` and
`compare_resampled` ask whether a run with other seeds *and* other images would agree; that is what a report's verdicts
are. `mcnemar` and `paired_test` take the seeds as given: they are for two runs of one computation, as in the gate.
Knows nothing of records, methods or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal, special, stats

Floats = NDArray[np.float64]


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of the exact McNemar test: do `a` and `b` get equally many of the same images right?

    Args:
        a: Outcome of every image, (images,), true where it was right.
        b: The other's outcomes of the same images in the same order.
    """
    first, second = _pair(a, b, dimensions=1)
    return float(mcnemar_of_counts((first & ~second).sum(), (second & ~first).sum()))


def mcnemar_of_counts(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """The same from numbers of images that one of the two alone gets right, of any shape; 1 where there are none."""
    first, second = np.asarray(only_a), np.asarray(only_b)
    return np.asarray(np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5)))


def paired_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value that `a` and `b` are equally accurate, over one or several seeds; exact.

    With several seeds every image occurs once per seed, and its outcomes are far from independent: pooling
    (image, seed) pairs in McNemar's test would count one image several times and find differences that are not there.
    So the image is the unit: each has d = (seeds where a is right) - (seeds where b is right), and if the two are
    equally good, d is as likely to be -d. The sum of all d is compared with its distribution under independent random
    signs, computed exactly, as a convolution of scaled binomials. With one seed this is the exact McNemar test.

    The seeds are taken as given: the test does not say whether other seeds would agree; `compare_outcomes` does.

    Args:
        a: Outcomes, (seeds, images), or (images,) for one seed.
        b: The other's outcomes, same shape: same seeds, same images.
    """
    first, second = _pair(np.atleast_2d(np.asarray(a)), np.atleast_2d(np.asarray(b)), dimensions=2)
    return _signed(first.sum(axis=0, dtype=np.int64) - second.sum(axis=0, dtype=np.int64))


def _signed(differences: NDArray[np.int64]) -> float:
    """The same from the images' differences, (images,), whole numbers."""
    observed = abs(int(differences.sum()))
    if observed == 0:
        return 1.0
    pmf = np.ones(1)  # of the sum of signed differences, on the integers -reach..reach
    for size, count in enumerate(np.bincount(np.abs(differences)).tolist()):
        if size and count:
            steps = np.zeros(2 * size * count + 1)
            steps[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            pmf = signal.convolve(pmf, steps)
    reach = len(pmf) // 2
    tail = float(np.clip(pmf[reach + observed :], 0.0, None).sum())  # the FFT may leave -1e-17
    return min(1.0, 2.0 * tail)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjustment of a family of p-values, in the order given. NaN (no test made) stays and does not count."""
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = raw.copy()
    tested = np.flatnonzero(~np.isnan(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * raw[order]))
    return adjusted


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's τ_b of two lists of means: 1 for the same order, -1 for the reversed one, NaN where one has none.

    Means of equal accuracies over the same seeds may differ by rounding, which is no order: nine decimals count.
    """
    first, second = (np.asarray(values, dtype=np.float64).round(9) for values in (a, b))
    return float(stats.kendalltau(first, second).statistic) if len(first) > 1 else math.nan


def wilson(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the share `correct / total`."""
    interval = stats.binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Comparison:
    """Two methods with the same seeds on the same images; all but the p-value in points.

    `seed_error` and `image_error` are the two parts of the standard error of `difference`: over the seeds that could
    have run, and over the images that could have been taken. From one seed neither `seed_error` nor `p_value` can be
    known: both are NaN.
    """

    difference: float
    seed_error: float
    image_error: float
    seeds: int
    p_value: float


def margin(seed_variance: ArrayLike, image_variance: ArrayLike, seeds: int, images: int, alpha: ArrayLike) -> Floats:
    """How large a difference may be by chance: half the interval that covers the true one with 1 - `alpha`.

    The square root of t² · `seed_variance` + u² · `image_variance`, where t and u are the two-sided critical values of
    Student's distribution with `seeds` - 1 and `images` - 1 degrees of freedom. This is Banerjee's interval for a sum
    of variances that are estimated apart (Sankhya 22, 1960). It is exact where one of the two vanishes, and never too
    short whatever their ratio: the distribution function F of the square of a normal variable is concave, so that for
    shares w and 1 - w of the true variance the interval covers with a probability of at least
    w · E F(t² X) + (1 - w) · E F(u² Y) = 1 - `alpha`, X and Y being mean squares over their expectations.
    Satterthwaite's approximate number of degrees of freedom does not promise that.

    Args:
        seed_variance: Variance over seeds of the mean difference, any shape.
        image_variance: Its variance over images, same shape.
        seeds: How many seeds the first is estimated from; with one, or one image, the margin is infinite.
        images: How many images the second is estimated from.
        alpha: Probability of a false positive, a number or of the same shape.
    """
    if seeds < 2 or images < 2:
        return np.full(np.broadcast(seed_variance, image_variance, alpha).shape, np.inf)
    of_seeds, of_images = (special.stdtrit(number - 1, np.asarray(alpha) / 2) for number in (seeds, images))
    return np.asarray(np.sqrt(of_seeds**2 * np.asarray(seed_variance) + of_images**2 * np.asarray(image_variance)))


def seeded_p(difference: float, seed_variance: float, image_variance: float, seeds: int, images: int) -> float:
    """Two-sided p-value of a mean difference over seeds and images: the `alpha` at which it leaves the `margin`."""
    if difference == 0 or seeds < 2 or images < 2:
        return 1.0
    low, high = -100.0, 0.0  # of the decimal logarithm; the margin falls as alpha grows
    while high - low > 1e-10:
        middle = (low + high) / 2
        if margin(seed_variance, image_variance, seeds, images, 10**middle) < abs(difference):
            high = middle
        else:
            low = middle
    return float(10**high)


def compare_outcomes(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare accuracies: would other seeds and other images agree?

    Two tests must find the difference, so the larger p-value counts. The first, `seeded_p`, has the spread of the
    paired differences over seeds beside their spread over images: what a seed does to single images is in both, which
    makes the test a little too careful. It is normal theory, which few discordant images are too few for; the exact
    `paired_test`, given the seeds, sees to those.

    Args:
        a: Outcome of every image, true where it was right, (seeds, images).
        b: The other's outcomes, same shape: same seeds, same images.
    """
    first, second = _pair(a, b, dimensions=2)
    return compare_counts(first.astype(np.int64) - second)


def compare_counts(differences: ArrayLike, whole: int = 1) -> Comparison:
    """The same from differences of counts: of outcomes, or of sums and differences of `whole` outcomes.

    Of single outcomes the second test is exact. Of sums it takes an image's difference to be as likely to have the
    other sign, which equal means do not quite say.

    Args:
        differences: Whole numbers, (seeds, images): one method's count less the other's.
        whole: How much an image counts: what is compared are means of counts over `whole`.
    """
    counts = np.asarray(differences)
    seeds, images = counts.shape
    by_seed, by_image = (100 * counts.mean(axis=axis) / whole for axis in (1, 0))
    image_variance = float(by_image.var(ddof=1)) / images if images > 1 else math.nan
    found = _compared(by_seed, image_variance, images)
    return found if seeds < 2 else replace(found, p_value=max(found.p_value, _signed(counts.sum(axis=0))))


def compare_resampled(a: Sequence[Resampled], b: Sequence[Resampled]) -> Comparison:
    """The same for metrics that are not a mean over images, from their draws: one of each method and seed.

    The variance over images is that of the paired bootstrap, of the difference averaged over seeds.
    """
    if len(a) != len(b) or len({len(x) for x in (*a, *b)}) != 1:
        raise ValueError("resampled metrics of other images or seeds cannot be paired")
    by_seed = np.array([x.value - y.value for x, y in zip(a, b, strict=True)])
    draws = np.mean([x.draws - y.draws for x, y in zip(a, b, strict=True)], axis=0)
    images = len(a[0])
    # A bootstrap sample varies less than a new one by this factor.
    return _compared(by_seed, float(np.var(draws, ddof=1)) * images / max(images - 1, 1), images)


def _compared(by_seed: Floats, image_variance: float, images: int) -> Comparison:
    """The comparison of paired differences, (seeds,), with their variance over images."""
    seeds = len(by_seed)
    difference, image_error = float(by_seed.mean()), math.sqrt(image_variance)
    if seeds < 2:
        return Comparison(difference, math.nan, image_error, seeds, math.nan)
    variance = float(by_seed.var(ddof=1)) / seeds
    p_value = seeded_p(difference, variance, image_variance, seeds, images)
    return Comparison(difference, math.sqrt(variance), image_error, seeds, p_value)


def chosen(p_values: ArrayLike, compared: int) -> Floats:
    """Adjust p-values of comparisons with the best of `compared` methods for its being chosen on the same data.

    The best is compared with the others only because it came out best, so that each of the
    compared * (compared - 1) / 2 pairs could have been tested, `compared` / 2 times as many as are. With this factor
    and then `holm`, a model's comparisons have a false one among them with no more than the nominal probability alpha:
    if the methods fall into classes of c equal ones each, that needs one of the c (c - 1) / 2 pairs of the best's class
    at or below 2 alpha / (compared (c - 1)), and the sum of their probabilities over the classes is alpha.
    """
    return np.minimum(1.0, np.asarray(p_values, dtype=np.float64) * max(1.0, compared / 2))


def detectable_difference(
    seed_variance: float, image_variance: float, seeds: int, images: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """True difference in points that leaves the `margin` with probability `power`; infinite for one seed.

    The image variance is taken to be at least what the difference itself brings along: an accuracy cannot change by d
    points without d % of the images changing.

    Args:
        seed_variance: True variance over seeds of the mean difference, in points squared.
        image_variance: Its true variance over images.
        seeds: Number of seeds.
        images: Number of images.
        alpha: Level of the test.
        power: Probability wanted.
    """
    if seeds < 2 or images < 2:
        return math.inf
    steps = (np.arange(512) + 0.5) / 512
    seen = seed_variance * stats.chi2.ppf(steps, seeds - 1) / (seeds - 1)  # what may be estimated of it

    def found(difference: float) -> float:
        variance = max(image_variance, 100 * difference / images)
        limits = margin(seen, variance, seeds, images, alpha)
        error = math.sqrt(seed_variance + variance)
        return float(
            np.mean(special.ndtr((difference - limits) / error) + special.ndtr((-difference - limits) / error))
        )

    low, high = 1e-6, 1.0
    while found(high) < power:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high


# A metric of resampled images: counts of every image (resamples, images) -> points (resamples,). For metrics that are
# no mean over images, such as average precision.
Metric = Callable[[Floats], Floats]
RESAMPLES = 500  # enough for a standard error; the normal tail then reaches p-values far below 1/500


@dataclass(frozen=True)
class Resampled:
    """A metric in points, and what it would be on resampled images.

    Two of them can be compared if `images` is the same, since then their resamples are of the same images.
    """

    images: int
    value: float
    draws: Floats

    def __len__(self) -> int:
        return self.images


def resamples(images: int, seed: int = 0) -> Floats:
    """How often each image is in each bootstrap sample, (resamples, images): the same for all that are compared."""
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.asarray(counts, dtype=np.float64)


def resample(metric: Metric, images: int, seed: int = 0) -> Resampled:
    """`metric` on all `images`, and on `RESAMPLES` bootstrap samples of them."""
    value = metric(np.ones((1, images)))[0]
    return Resampled(images, float(value), np.asarray(metric(resamples(images, seed))))


def bootstrap_test(a: Resampled, b: Resampled) -> tuple[float, float, float]:
    """Compare a metric in two runs of one computation, on the same images with the same seed; as the gate does.

    Returns:
        The difference a - b in points, its standard error over images by the paired bootstrap, and the two-sided
        p-value of their ratio under the normal distribution.
    """
    if len(a) != len(b):
        raise ValueError("resampled metrics of other images cannot be paired")
    difference, spread = a.value - b.value, float(np.std(a.draws - b.draws, ddof=1))
    if spread == 0:
        return difference, 0.0, float(difference == 0)
    return difference, spread, float(2 * stats.norm.sf(abs(difference) / spread))


def _pair(a: ArrayLike, b: ArrayLike, *, dimensions: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != dimensions:
        raise ValueError(f"outcomes of shape {first.shape} and {second.shape} cannot be paired")
    return first, second
