"""How many values a tensor holds, and whether they are those of a quantizer of some width."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.microscaling import Element, cut, foreign_blocks, log2_floor, power_of_two, scaled

_SLACK = 2e-3  # steps that a value may lie off its grid: float32 rounding of 256 codes and an offset is a tenth of it


def fault(rows: Tensor, bits: int) -> str | None:
    """What shows that some row of (rows, values) was not rounded to `bits` bits, or None.

    A row may have 2^bits values, with zero besides: padding brings it, and logarithmic codes leave it out. Where a row
    is so short that any values would pass, they must repeat or lie on an even grid of 2^bits steps; a row of two or
    fewer always does.
    """
    most = 2**bits
    if rows.shape[0] == 1 and rows.shape[1] > 2 * most:  # the usual case, in one operation
        values = rows.detach().float().unique()
        if len(values) <= most and bool(torch.isfinite(values[-1])) and bool(torch.isfinite(values[0])):
            return None
    ordered = rows.detach().float().sort(1).values
    if not bool(torch.isfinite(ordered[:, [0, -1]]).all()):  # NaN and infinities are sorted to the ends
        return "are not all finite"
    new = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    counts = (new & (ordered != 0)).sum(1)
    worst = int(counts.max())
    if worst > most:
        return f"hold {worst} different values, where {bits} bits give {most}"
    if rows.shape[1] > 2 * most:  # so many values that few of them can only be a quantizer's
        return None
    for row in (counts > rows.shape[1] // 2).nonzero().flatten().tolist():
        if not _even(ordered[row][new[row]].double(), most):
            return f"hold {int(counts[row])} different values of {rows.shape[1]}, on no grid of {most} even steps"
    return None


def block_fault(blocks: Tensor, stored: Format, count: int | None) -> str | None:
    """What shows that some of the blocks (..., values of a block) is not of a microscaling format, or None.

    About `count` values of whole blocks from all over them are looked at, or for None all of them.
    """
    rows = blocks.flatten(0, -2)
    wanted = len(rows) if count is None else max(1, count // rows.shape[1])
    if len(rows) > wanted:
        rows = rows.index_select(0, _places(len(rows), wanted, rows.device))
    if not bool(torch.isfinite(rows).all()):
        return "are not all finite"
    foreign = int(foreign_blocks(rows, stored).sum())
    return f"in {foreign} of {len(rows)} blocks are none that {stored} has under any scale" if foreign else None


def outlier_fault(blocks: Tensor, bits: int, micro: int) -> str | None:
    """What shows that blocks (..., values of a block) are not integers of `bits` bits under a power of two, but for
    outliers in `micro` successive values, or None.

    Outliers need as many zeros beside them, whose place half of their bits take; they share a power of two, and have a
    sign and 2 bits - 2 bits behind the leading one.
    """
    rows = blocks.flatten(0, -2)
    if not bool(torch.isfinite(rows).all()):
        return "are not all finite"
    integers, octaves = Element.of(Format(bits)), log2_floor(rows)
    known = octaves[rows != 0]
    if not len(known):
        return None
    # A share of a block (rows, shares, values); what fills it up is no 0 that pays for an outlier.
    shares, octave = (cut(each, -1, micro) for each in (rows, octaves))
    filled = cut(torch.ones_like(rows), -1, micro) == 0
    zeros = ((shares == 0) & ~filled).sum(-1)
    steps = shares.abs() / power_of_two(octave.clamp(min=-1000), shares) * 2.0 ** (2 * bits - 2)
    fine = (steps == steps.round()) | (shares == 0)
    kept = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for exponent in range(int(known.min()) - bits, int(known.max()) + 1):
        inlying = scaled(rows, torch.full_like(octaves[:, :1], exponent), integers) == rows
        outlying = ~cut(inlying, -1, micro) & ~filled
        top = octave.masked_fill(~outlying, -(2**20)).amax(-1, keepdim=True)
        alike = ~outlying | ((octave == top) & fine)
        kept |= (alike.all(-1) & (outlying.sum(-1) <= zeros)).all(-1)
    lost = int((~kept).sum())
    return (
        f"in {lost} of {len(kept)} blocks are no {bits}-bit integers with outliers paid for by zeros" if lost else None
    )


def _even(values: Tensor, most: int) -> bool:
    """Whether the ascending `values` (n,) lie on a grid of at most `most` even steps."""
    steps = torch.arange(1, most, dtype=torch.float64, device=values.device)[:, None]
    if len(values) <= 2:
        return True
    shares = (values - values[0]) / (values[-1] - values[0])
    for some in (shares[:: len(shares) // 12 + 1], shares):  # a few values rule most grids out
        places = some * steps  # (candidates, n)
        steps = steps[(places - places.round()).abs_().amax(1) < _SLACK]
    return len(steps) > 0


def spread(x: Tensor, count: int | None) -> Tensor:
    """`count` values from all over `x` as a row (1, count); all of them if there are no more, or for None."""
    flat = x.detach().reshape(1, -1)
    if count is None or flat.shape[1] <= count:
        return flat
    return flat.index_select(1, _places(flat.shape[1], count, x.device))


def sample(rows: Tensor, count: int) -> Tensor | None:
    """`count` values from all over each of (rows, values) as (rows, count); None if there are fewer."""
    if rows.shape[1] < count:
        return None
    return rows.index_select(1, _places(rows.shape[1], count, rows.device))


def slices(x: Tensor, axis: int, count: int | None) -> Tensor:
    """`count` slices from all over `axis` as rows (count, values); all of them if there are no more, or for None."""
    rows = x.detach().movedim(axis, 0).flatten(1)
    if count is None or len(rows) <= count:
        return rows
    return rows.index_select(0, _places(len(rows), count, x.device))


@cache
def _places(length: int, count: int, device: torch.device) -> Tensor:
    return torch.linspace(0, length - 1, count, dtype=torch.float64).long().to(device)
