"""Two runs of a case on the same images: what differs, what the rule says of it, and what it would see. Pure.

`Pairing` is of images that are right or wrong, `Shift` of any other metric. Both answer the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from harness.regress.outcomes import Correct, Dense
from harness.regress.rule import ALPHA, Limits, detectable, seen
from harness.report import stats

POWER = 0.8


@dataclass(frozen=True)
class Sensitivity:
    """What the rule sees in a case, in points: the smallest net drop that fails, given the flips that were observed,
    and the smallest true drop that fails in 80 % of simulated runs. None: no drop would.
    """

    net: float | None
    true: float | None


@dataclass(frozen=True)
class Pairing:
    """Images gained and lost, and p-values of the exact McNemar test."""

    up: int
    down: int
    p: float
    p_adjusted: float

    @property
    def flips(self) -> int:
        """Images that only one of the two has right."""
        return self.up + self.down

    def beyond(self, limits: Limits) -> bool:
        """Whether the net change is beyond the tolerance."""
        return bool(limits.beyond(self.up, self.down))

    def problems(self, limits: Limits) -> Iterator[str]:
        """What the rule finds, in words."""
        if not limits.fails(self.up, self.down, self.p_adjusted):
            return
        points = 100 * (self.up - self.down) / limits.images
        how = f"{self.up} images gained, {self.down} lost, p = {self.p_adjusted:.2g}"
        if self.beyond(limits) and (limits.repeatable or self.p_adjusted <= ALPHA):
            yield _moved(points, limits, how)
        else:
            most = f"{limits.flips:.0f} that go with a tolerance of {limits.tolerance:g}"
            yield f"{self.flips} images flip, more than the {most} ({how})"

    def sensitivity(self, limits: Limits, family: int) -> Sensitivity:
        """What the rule would see, with the flips of this pair, among `family` cases."""
        flips = min(self.flips, int(limits.flips))  # more of them fail without any drop
        return Sensitivity(detectable(limits, flips, family), seen(limits, flips, family, POWER))


@dataclass(frozen=True)
class Shift:
    """Images whose outcome changed, and by how many points the metric did, with its paired bootstrap.

    Where outcomes repeat exactly, changed images are limited as flips are. Elsewhere they are not judged: one pixel
    that is rounded differently changes an image.
    """

    changed: int
    difference: float
    error: float
    p: float
    p_adjusted: float

    def beyond(self, limits: Limits) -> bool:
        """Whether the metric moved by more than the tolerance."""
        return limits.exceeded(self.difference)

    def problems(self, limits: Limits) -> Iterator[str]:
        """What the rule finds, in words."""
        how = f"{self.changed} images changed, p = {self.p_adjusted:.2g}"
        if self.beyond(limits) and (limits.repeatable or self.p_adjusted <= ALPHA):
            yield _moved(self.difference, limits, how)
        elif limits.repeatable and limits.restless(self.changed, 0):
            most = f"{limits.flips:.0f} that go with a tolerance of {limits.tolerance:g}"
            yield f"{self.changed} images changed, more than the {most}; the metric by {self.difference:+.2f} points"

    def sensitivity(self, limits: Limits, family: int) -> Sensitivity:
        """What the rule would see, with the standard error of this pair, among `family` cases."""
        if limits.repeatable:
            drop = limits.tolerance if limits.flips >= 1 else 0.0  # without a changed image there is no drop
            return Sensitivity(drop, drop)
        net = max(limits.tolerance, self.error * float(distributions.norm.isf(ALPHA / 2 / family)))
        return Sensitivity(net, net + self.error * float(distributions.norm.ppf(POWER)))


Paired = Pairing | Shift


def pair(old: Correct | Dense, new: Correct | Dense) -> Paired | None:
    """Compare the outcomes of two runs, unadjusted; None if they are of other images or of another kind."""
    if len(old) != len(new):
        return None
    if isinstance(old, Dense) and isinstance(new, Dense):
        difference, error, p = stats.bootstrap_test(new.resampled, old.resampled)
        return Shift(int((old.digests != new.digests).sum()), difference, error, p, p)
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        up, down = int((new & ~old).sum()), int((old & ~new).sum())
        p = float(stats.mcnemar_of_counts(up, down))
        return Pairing(up, down, p, p)
    return None


def _moved(points: float, limits: Limits, how: str) -> str:
    kind = "drop" if math.copysign(1, points) < 0 else "gain that nobody has explained"
    return f"{kind} of {abs(points):.2f} points, beyond the tolerance of {limits.tolerance:g} ({how})"
