"""Statistics of the report: pure functions on arrays.

Methods are evaluated on the same images, so they are compared image by image. Two spreads are kept apart: the p-values
and intervals here are over *images*, given the seeds that ran; the spread over *seeds* is the table's ± column.
Knows nothing of records, methods or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal, stats


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of the exact McNemar test: do `a` and `b` get equally many of the same images right?

    Args:
        a: Outcome of every image, (images,), true where it was right.
        b: The other's outcomes of the same images in the same order.
    """
    first, second = _pair(a, b, dimensions=1)
    return float(mcnemar_of_counts((first & ~second).sum(), (second & ~first).sum()))


def mcnemar_of_counts(only_a: ArrayLike, only_b: ArrayLike) -> NDArray[np.float64]:
    """The same from numbers of images that one of the two alone gets right, of any shape; 1 where there are none."""
    first, second = np.asarray(only_a), np.asarray(only_b)
    return np.asarray(np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5)))


def paired_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value that `a` and `b` are equally accurate, over one or several seeds; exact.

    With several seeds every image occurs once a seed, and its outcomes are far from independent: pooling (image, seed)
    pairs in McNemar's test would count one image several times and find differences that are not there. So the image
    is the unit: each has d = (seeds where a is right) - (seeds where b is right), and if the two are equally good, d
    is as likely to be -d. The sum of all d is compared with its distribution under independent random signs, which is
    computed exactly, as a convolution of scaled binomials. With one seed this is the exact McNemar test.

    The seeds are taken as given: the test does not say whether other seeds would agree.

    Args:
        a: Outcomes, (seeds, images), or (images,) for one seed.
        b: The other's outcomes, same shape: same seeds, same images.
    """
    first, second = _pair(np.atleast_2d(np.asarray(a)), np.atleast_2d(np.asarray(b)), dimensions=2)
    differences = first.sum(axis=0, dtype=np.int64) - second.sum(axis=0, dtype=np.int64)
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


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjustment of a family of p-values, in the order given. NaN (no test made) stays and does not count."""
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = raw.copy()
    tested = np.flatnonzero(~np.isnan(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * raw[order]))
    return adjusted


def wilson(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the share `correct / total`."""
    interval = stats.binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def discordance(a: ArrayLike, b: ArrayLike) -> float:
    """Mean squared per-image difference of accuracy, (seeds, images) or (images,) each.

    With one seed: the share of images that exactly one of the two gets right.
    """
    first, second = _pair(np.atleast_2d(np.asarray(a)), np.atleast_2d(np.asarray(b)), dimensions=2)
    return float(((first.mean(axis=0) - second.mean(axis=0)) ** 2).mean())


def detectable_difference(images: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Difference of two accuracies (a share) that a paired test on `images` images finds with probability `power`.

    Normal approximation, z * sqrt(discordant / images) with z = z_{1-alpha/2} + z_power and `discordant` from
    `discordance`; at least z^2 / images, where the difference would be that of all discordant images.
    """
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(z * math.sqrt(max(discordant, z**2 / images) / images))


# A metric of resampled images: counts of every image (resamples, images) -> points (resamples,). For metrics that are
# no mean over images, such as average precision.
Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]
RESAMPLES = 500  # enough for a standard error; the normal tail then reaches p-values far below 1/500


@dataclass(frozen=True)
class Resampled:
    """A metric in points, and what it would be on resampled images.

    Two of them can be compared if `images` is the same, since then their resamples are of the same images.
    """

    images: int
    value: float
    draws: NDArray[np.float64]

    def __len__(self) -> int:
        return self.images


def resample(metric: Metric, images: int, seed: int = 0) -> Resampled:
    """`metric` on all `images`, and on `RESAMPLES` bootstrap samples of them."""
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    value = metric(np.ones((1, images)))[0]
    return Resampled(images, float(value), np.asarray(metric(weights.astype(np.float64))))


def bootstrap_test(a: Sequence[Resampled], b: Sequence[Resampled]) -> tuple[float, float, float]:
    """Compare a metric on the same images, averaged over the same seeds (taken as given).

    Returns:
        The difference in points, its standard error over images by the paired bootstrap, and the two-sided p-value of
        their ratio under the normal distribution.
    """
    if len(a) != len(b) or len({len(x) for x in (*a, *b)}) != 1:
        raise ValueError("resampled metrics of other images or seeds cannot be paired")
    difference = float(np.mean([x.value - y.value for x, y in zip(a, b, strict=True)]))
    spread = float(np.std(np.mean([x.draws - y.draws for x, y in zip(a, b, strict=True)], axis=0), ddof=1))
    if spread == 0:
        return difference, 0.0, float(difference == 0)
    return difference, spread, float(2 * stats.norm.sf(abs(difference) / spread))


def _pair(a: ArrayLike, b: ArrayLike, *, dimensions: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != dimensions:
        raise ValueError(f"outcomes of shape {first.shape} and {second.shape} cannot be paired")
    return first, second
