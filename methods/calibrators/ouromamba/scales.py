"""Symmetric steps by the least error among shrunken ranges, for channels of a weight and for positions of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.core.numerics.affine import SMALLEST, fake_quantize
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Uniform


def largest_code(bits: int) -> int:
    """Codes are - this .. this: 2^bits - 1 of them."""
    return int(2 ** (bits - 1) - 1)


def errors(rows: Tensor, largest: Tensor, top: int, ratios: int, norm: float) -> Tensor:
    """Σ |Q(x) - x|^norm of each of `rows` (rows, values) for the ranges `largest` (rows,) times 1, 1 - 1/ratios, ...,
    1/ratios: (ratios, rows).
    """
    found = []
    for i in range(ratios):
        step = (largest * (1 - i / ratios) / top).clamp(min=SMALLEST)[:, None]
        found.append((fake_quantize(rows, step, -top, top) - rows).abs_().pow_(norm).sum(1))
    return torch.stack(found)


def best(error: Tensor, largest: Tensor, top: int) -> Tensor:
    """The step (rows,) of the range with the least of `error` (ratios, rows), the widest of several."""
    ratio = 1 - error.argmin(0) / len(error)
    return (largest * ratio / top).clamp(min=SMALLEST)


def weight_grid(weight: Tensor, bits: int, *, ratios: int, norm: float, axis: int) -> Uniform:
    """The quantizer of a weight with a step for each output channel, which lie along `axis`."""
    top, channels = largest_code(bits), PerChannel(axis)
    rows = channels.rows(weight.detach())
    largest = rows.abs().amax(1)
    step = best(errors(rows, largest, top, ratios, norm), largest, top)
    return Uniform(step, torch.zeros_like(step, dtype=torch.int32), -top, top, channels)


class Largest:
    """Observer of the largest inlier at every position of (n, tokens, channels)."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self.value: Tensor | None = None  # (tokens,)

    def update(self, x: Tensor) -> None:
        """See a batch."""
        found = inliers(x, self._deviations).abs().amax((0, 2))
        self.value = found if self.value is None else torch.maximum(self.value, found)


class Shrinking:
    """Observer of the errors of inliers at every position of (n, tokens, channels).

    Args:
        largest: of the inliers, (tokens,).
        top: largest code.
        ratios: ranges tried.
        norm: exponent of the error.
        deviations: see `inliers`.
    """

    def __init__(self, largest: Tensor, top: int, *, ratios: int, norm: float, deviations: float) -> None:
        self._largest, self._top, self._ratios, self._norm = largest, top, ratios, norm
        self._deviations = deviations
        self._errors: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        """See a batch."""
        rows = inliers(x, self._deviations).transpose(0, 1).flatten(1)
        self._errors = self._errors + errors(rows, self._largest, self._top, self._ratios, self._norm)

    def step(self) -> Tensor:
        """The best step of each position (tokens,)."""
        assert isinstance(self._errors, Tensor)
        return best(self._errors, self._largest, self._top)


def far(x: Tensor, deviations: float) -> Tensor:
    """Which values of (..., channels) are, in magnitude, above their token's mean by so many standard deviations."""
    bound = x.mean(-1, keepdim=True) + deviations * x.std(-1, correction=0, keepdim=True)
    return x.abs() > bound


def inliers(x: Tensor, deviations: float) -> Tensor:
    """`x` with 0 for what is `far`."""
    return x.masked_fill(far(x, deviations), 0.0)
