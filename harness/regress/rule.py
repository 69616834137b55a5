"""The rule that decides whether a case moved: pure functions of counts of images.

`up` images are right now and were not, `down` images were right and are not; both are flips. Their difference is the
net change. docs/regression.md gives the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.report.stats import mcnemar_of_counts

ALPHA = 0.05
SIGMAS = 3.0  # flips that cancel are a random walk: its net change stays within 3 times the root of their number
DRAWS = 2000  # of a simulation; the standard error of a power of 80 % is then 0.9 points
_ROUNDING = 1e-9  # 0.3 points of 2,000 images are 6 images, not 5.999…


@dataclass(frozen=True)
class Limits:
    """What a case may do.

    Args:
        images: Number of evaluation images.
        tolerance: Net change that is tolerated either way, in points.
        repeatable: Whether the environment is that of the baseline, so that unchanged code gives identical outcomes.
            A difference then needs no significance: it is one.
    """

    images: int
    tolerance: float
    repeatable: bool

    @property
    def net(self) -> float:
        """Tolerated net change in images."""
        return self.tolerance * self.images / 100

    @property
    def flips(self) -> float:
        """Tolerated flips: those whose random walk stays within `net`, and at least `net` itself."""
        return max(self.net, (self.net / SIGMAS) ** 2)

    def beyond(self, up: ArrayLike, down: ArrayLike) -> NDArray[np.bool_]:
        """Whether the net change is beyond the tolerance."""
        return np.asarray(np.abs(np.subtract(up, down)) > self.net + _ROUNDING)

    def exceeded(self, points: float) -> bool:
        """Whether a change of a metric that is not a share of images is beyond the tolerance."""
        return abs(points) > self.tolerance + _ROUNDING

    def restless(self, up: ArrayLike, down: ArrayLike) -> NDArray[np.bool_]:
        """Whether there are more flips than tolerated, whatever their net change."""
        return np.asarray(np.add(up, down) > self.flips + _ROUNDING)

    def fails(self, up: ArrayLike, down: ArrayLike, p_adjusted: ArrayLike) -> NDArray[np.bool_]:
        """Whether the case fails: beyond the tolerance, significantly so unless repeatable, or too many flips.

        Args:
            up: Images gained, any shape.
            down: Images lost, same shape.
            p_adjusted: Holm-adjusted p-values of the exact McNemar test, same shape.
        """
        significant = np.asarray(p_adjusted) <= ALPHA
        return (self.beyond(up, down) & (significant | self.repeatable)) | self.restless(up, down)


def detectable(limits: Limits, flips: int, cases: int) -> float | None:
    """Smallest net drop that fails, in points, in a case where `flips` images flip anyway; None if none does.

    The drop is taken to be the only one among `cases`, so that its p-value is adjusted by their number.
    """
    drop = np.arange(1, limits.images + 1)
    total = np.maximum(flips, drop)
    total += (total - drop) % 2  # flips and net change are both even or both odd
    down = (total + drop) // 2
    up = total - down
    failing = np.flatnonzero(limits.fails(up, down, np.minimum(1.0, cases * mcnemar_of_counts(up, down))))
    return 100 * float(drop[failing[0]]) / limits.images if len(failing) else None


def power(limits: Limits, flips: int, cases: int, drop: float, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Share of simulated runs that fail if accuracy truly falls by `drop` points.

    Every image is lost with probability `drop` / 100; besides, images flip either way as often as `flips` says.
    """
    rng = np.random.default_rng(seed)
    n = limits.images
    up, down = rng.binomial(n, min(1.0, flips / 2 / n), (2, draws))
    down = np.minimum(n - up, down + rng.binomial(n, drop / 100, draws))
    return float(limits.fails(up, down, np.minimum(1.0, cases * mcnemar_of_counts(up, down))).mean())


def seen(limits: Limits, flips: int, cases: int, wanted: float) -> float | None:
    """Smallest true drop, in points of whole images, that a simulated run fails with probability `wanted`."""
    lost: NDArray[np.int_] = np.arange(1, limits.images + 1)
    low, high = 0, len(lost)  # power grows with the drop, but for the error of the simulation
    while low < high:
        middle = (low + high) // 2
        if power(limits, flips, cases, 100 * float(lost[middle]) / limits.images) >= wanted:
            high = middle
        else:
            low = middle + 1
    return 100 * float(lost[low]) / limits.images if low < len(lost) else None
