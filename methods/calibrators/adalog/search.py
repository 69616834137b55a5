"""Fast progressive combining search: pairs of parameters, coarse candidates first, then ever closer neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# errors (k, g) of k candidate pairs for each of g groups, which are independent: output channels, heads, or one tensor
Score = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]

_CROSS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_RING = (*_CROSS, (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class Axis:
    """Coarse candidates of one parameter and how it is refined.

    `candidates` are (n, g) or (n, 1), `width` the distance of the first neighbours, (g,) or (1,), `least` and `most`
    its bounds. `integer`: it takes whole numbers only.
    """

    candidates: Tensor
    width: Tensor
    least: float
    most: float
    integer: bool = False

    def near(self, value: Tensor, sign: Tensor, halvings: int) -> Tensor:
        """Neighbours of `value` (keep, g) in the directions `sign` (m,): (keep, m, g)."""
        width = self.width * 0.5**halvings
        if self.integer:
            width = width.round().clamp(min=1)
        return (value[:, None] + sign[:, None] * width).clamp(self.least, self.most)


def combine(score: Score, first: Axis, second: Axis, start: Pair, *, keep: int, steps: int, ring: bool) -> Pair:
    """The pair of least error that is found, for each group: two tensors (g,).

    All combinations of the coarse candidates are scored, and `start`, two tensors (g,). The best `keep` are refined
    `steps` times, by 8 neighbours each (`ring`) or 4, whose distance halves every time.
    """
    groups = start[0].shape[0]
    a, b = (t.expand(-1, groups) for t in (first.candidates, second.candidates))
    a, b = a.repeat_interleave(len(second.candidates), 0), b.repeat(len(first.candidates), 1)
    a, b = torch.cat([start[0][None], a]), torch.cat([start[1][None], b])
    errors = score(a, b)
    signs = torch.tensor(_RING if ring else _CROSS, dtype=a.dtype, device=a.device)
    for step in range(steps):
        # A stable sort, so that equal errors are told apart in the same way every time.
        best = errors.sort(dim=0, stable=True).indices[:keep]
        a, b, errors = a.gather(0, best), b.gather(0, best), errors.gather(0, best)
        near = first.near(a, signs[:, 0], step).flatten(0, 1), second.near(b, signs[:, 1], step).flatten(0, 1)
        a, b, errors = torch.cat([a, near[0]]), torch.cat([b, near[1]]), torch.cat([errors, score(*near)])
    best = errors.argmin(0, keepdim=True)
    return a.gather(0, best)[0], b.gather(0, best)[0]
