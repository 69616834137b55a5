"""Two methods whose true accuracies are known, run again and again: how often does a verdict tell them apart?

A run draws seeds and images. A seed shifts a method's accuracy by a random effect; an image is easy or hard for all,
but for those of which a method and seed make something of their own. What is drawn are counts of images with equal
outcomes, so that 50,000 images cost little more than 500.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.report import stats

Floats = NDArray[np.float64]
ALPHA = 0.05
Effects = Literal["normal", "laplace", "t3", "skewed", "two-point", "rare"]


@dataclass(frozen=True)
class World:
    """What is true. Points are percent of the images.

    Args:
        seeds: Seeds that both methods are run with.
        images: Evaluation images.
        spreads: Standard deviation over seeds of either method's accuracy, in points.
        accuracy: Expected accuracy of the first method; an effect never leads beyond 100 % nor as far below.
        difference: By how many points the second one's is lower.
        correlation: Between the two methods' effects of a seed.
        effects: Distribution of the effects; `rare` is a failure, one seed in ten.
        own: Share of the images that a method with a seed judges by itself.
    """

    seeds: int = 3
    images: int = 2000
    spreads: tuple[float, float] = (5.0, 5.0)
    accuracy: float = 80.0
    difference: float = 0.0
    correlation: float = 0.0
    effects: Effects = "normal"
    own: float = 0.1


def accuracies(world: World, runs: int, rng: np.random.Generator) -> Floats:
    """True accuracies of both methods with every seed in points, (runs, 2, seeds)."""
    shape = (runs, 2, world.seeds)
    if world.effects == "normal":
        shared, own = rng.normal(size=(runs, 1, world.seeds)), rng.normal(size=shape)
        unit = world.correlation**0.5 * shared + (1 - world.correlation) ** 0.5 * own
    elif world.effects == "laplace":
        unit = rng.laplace(size=shape) / 2**0.5
    elif world.effects == "t3":
        unit = rng.standard_t(3, size=shape) / 3**0.5
    elif world.effects == "skewed":
        unit = 1 - rng.exponential(size=shape)
    elif world.effects == "two-point":
        unit = rng.choice([-1.0, 1.0], size=shape)
    else:
        unit = np.where(rng.random(shape) < 0.1, -3.0, 1 / 3)
    expected = np.array([world.accuracy, world.accuracy - world.difference])[:, None]
    reach = np.minimum(expected, 100 - expected)
    return np.asarray(expected + np.clip(unit * np.array(world.spreads)[:, None], -reach, reach))


def drawn(world: World, runs: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images by their outcomes: every pattern of differences (patterns, seeds) and its images (runs, patterns).

    A difference is 1 where only the first method is right, -1 where only the second is.
    """
    rng = np.random.default_rng(seed)
    right = accuracies(world, runs, rng) / 100
    patterns = np.array(list(product((-1, 0, 1), repeat=world.seeds)))
    edges = np.sort(np.concatenate([right.reshape(runs, -1), np.zeros((runs, 1)), np.ones((runs, 1))], axis=1))
    shares = np.diff(edges)
    middles = (edges[:, 1:] + edges[:, :-1]) / 2  # of an image's difficulty
    both = (1 - world.own) * (middles[:, :, None, None] < right[:, None]) + world.own * right[:, None]
    first, second = both[:, :, 0], both[:, :, 1]  # probability of being right, (runs, intervals, seeds)
    of_sign = np.stack([(1 - first) * second, first * second + (1 - first) * (1 - second), first * (1 - second)])
    of_pattern = np.prod(of_sign[patterns + 1, :, :, np.arange(world.seeds)], axis=1)  # (patterns, runs, intervals)
    in_all = (of_pattern * shares).sum(axis=2).T
    return patterns, rng.multinomial(world.images, in_all / in_all.sum(axis=1, keepdims=True))


def arrays(patterns: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes of both methods in one run, (seeds, images) each; who is right of equals does not matter."""
    signs = np.repeat(patterns, counts, axis=0).T
    return signs == 1, signs == -1


def screened(world: World, runs: int, seed: int = 0) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The runs in which the difference leaves its margin; in all others there is no verdict."""
    patterns, counts = drawn(world, runs, seed)
    n, k = world.images, world.seeds
    by_seed = 100 * counts @ patterns / n
    mean = by_seed.mean(axis=1)
    square = 100**2 * counts @ patterns.mean(axis=1) ** 2 / n
    image_variance = (square - mean**2) / (n - 1)
    seed_variance = by_seed.var(axis=1, ddof=1) / k
    outside = np.abs(mean) >= stats.margin(seed_variance, image_variance, k, n, ALPHA) * (1 - 1e-9)
    for run in np.flatnonzero(outside & (mean != 0)):
        yield arrays(patterns, counts[run])


def verdicts(world: World, runs: int, seed: int = 0) -> float:
    """Share of runs that tell the two apart."""
    return sum(stats.compare_outcomes(a, b).p_value <= ALPHA for a, b in screened(world, runs, seed)) / runs


def resampled_verdicts(world: World, runs: int, seed: int = 0) -> float:
    """The same for a metric that is pooled over images of unequal weight, as mIoU is, by its bootstrap."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(0).multinomial(
        world.images, np.full(world.images, 1 / world.images), size=stats.RESAMPLES
    )
    found = 0
    for right in accuracies(world, runs, rng) / 100:
        size = rng.exponential(size=world.images)
        quality = 0.3 * rng.normal(size=(1, 1, world.images)) + world.own * rng.normal(
            size=(2, world.seeds, world.images)
        )
        score = (size * (right[..., None] + quality)).reshape(-1, world.images)
        values = 100 * score.sum(axis=1) / size.sum()
        draws = (100 * (weights @ score.T) / (weights @ size)[:, None]).T
        made = [stats.Resampled(world.images, float(v), d) for v, d in zip(values, draws, strict=True)]
        found += stats.compare_resampled(made[: world.seeds], made[world.seeds :]).p_value <= ALPHA
    return found / runs
