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
# Of so many values the few at an end are found 4 to 12 times faster than all of them are sorted.
_FEW = 8


def ends(rows: Tensor, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Lower (1 - p) and upper (p) quantiles of each row of (c, n), both (percentiles, c), interpolated linearly.

    Not by torch.quantile, which stops at 2^24 values.
    """
    last = rows.shape[1] - 1

    def place(p: float) -> tuple[int, int, float]:
        below = int(p * last)
        return below, min(below + 1, last), p * last - below

    lower, upper = [place(1.0 - p) for p in percentiles], [place(p) for p in percentiles]
    from_below = max(above for _, above, _ in lower) + 1
    from_above = last - min(below for below, _, _ in upper) + 1
    if _FEW * max(from_below, from_above) <= rows.shape[1]:
        lowest = rows.topk(from_below, 1, largest=False).values
        highest = rows.topk(from_above, 1).values.flip(1)
    else:
        lowest = highest = rows.sort(1).values
    skipped = rows.shape[1] - highest.shape[1]
    return (
        torch.stack([torch.lerp(lowest[:, below], lowest[:, above], part) for below, above, part in lower]),
        torch.stack(
            [torch.lerp(highest[:, below - skipped], highest[:, above - skipped], part) for below, above, part in upper]
        ),
    )


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
