"""Quantizers whose range is the best of a few percentiles (METHODS: Q4), many channels at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from methods.core.numerics.affine import SMALLEST, fake_quantize, parameters
from methods.core.numerics.granularity import PER_TENSOR, Granularity
from methods.core.numerics.quantizers import Uniform

# Values of the largest intermediate tensor (candidates x channels x values).
_CHUNK = 2**22
# A channel that is constant, or nearly, has a step of at least its magnitude by this: so that x / scale is still exact
# to the integer in float32 and the zero point fits its integer type.
_FINEST = 2.0**-16


def ends(rows: Tensor, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Lower (1 - p) and upper (p) quantiles of each row of (c, n), both (percentiles, c), interpolated linearly.

    By sorting once, since torch.quantile stops at 2^24 values.
    """
    ordered = rows.sort(1).values
    last = rows.shape[1] - 1

    def at(p: float) -> Tensor:
        place = p * last
        below = int(place)
        return torch.lerp(ordered[:, below], ordered[:, min(below + 1, last)], place - below)

    return torch.stack([at(1.0 - p) for p in percentiles]), torch.stack([at(p) for p in percentiles])


def squared_errors(rows: Tensor, candidates: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of squared differences (candidates, c) of `rows` (c, n) from what each candidate makes of them.

    `rounded` turns a part (c, m) of the rows into (candidates, c, m).
    """
    size = max(1, _CHUNK // (candidates * rows.shape[0]))
    total = torch.zeros(candidates, rows.shape[0], dtype=torch.float64, device=rows.device)
    for part in rows.split(size, 1):
        total += rounded(part).sub_(part).square_().sum(2, dtype=torch.float64)
    return total


def uniform(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step (high - low) / (2^bits - 1) and zero point round(-low / step), which is not clipped to the codes, so that a
    range far from 0 is covered too.
    """
    magnitude = torch.maximum(low.abs(), high.abs())
    return parameters(low, high, 2**bits - 1, (magnitude * _FINEST).clamp(min=SMALLEST))


def percentile_quantizer(
    x: Tensor,
    bits: int,
    percentiles: Sequence[float],
    *,
    granularity: Granularity = PER_TENSOR,
    widen: bool = False,
) -> Uniform:
    """The asymmetric quantizer of least squared error among those of the percentiles' ranges.

    Args:
        x: the values, any shape.
        bits: width of the codes.
        percentiles: candidates p; the range is from the (1 - p)- to the p-quantile.
        granularity: which values share a quantizer; each chooses its own percentile.
        widen: widen ranges to contain 0, so that 0 <= zero point <= 2^bits - 1.
    """
    x = x.detach()
    rows = granularity.rows(x)
    low, high = ends(rows, percentiles)
    if widen:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale, zero = uniform(low, high, bits)
    step, bottom, top = scale[:, :, None], -zero[:, :, None], 2**bits - 1 - zero[:, :, None]
    errors = squared_errors(rows, len(percentiles), lambda part: fake_quantize(part, step, bottom, top))
    best = errors.argmin(0, keepdim=True)
    scale, zero = (granularity.stored(each.gather(0, best)[0]) for each in (scale, zero))
    return Uniform(scale, zero.to(torch.int32), 0, 2**bits - 1, granularity)
