"""Squared errors of a layer's output for many candidates of one of its factors, the other being quantized already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.calibrators.adalog.factors import Factor
from methods.calibrators.adalog.search import Score

# Values of the largest intermediate tensor. On a CPU four times as many take half as long again, since fresh memory has
# to be mapped for every operation.
_CHUNK = 2**21


class WeightErrors:
    """For y = W x: sum of (W x - W^ x^)^2 over the rows of x (n, c), for each output channel.

    With D = W^ - W and E = x - x^ it is W E'E W' - 2 D x^'E W' + D x^'x^ D', whose Gram matrices do not depend on the
    candidate; the first term does not matter for the choice.

    `present` (n, c), if given, is 0 where `x` has no value (and is 0): what is absent is not rounded.
    """

    def __init__(
        self, factor: Factor, weight: Tensor, x: Tensor, rounded: Tensor, present: Tensor | None = None
    ) -> None:
        self._factor, self._weight = factor, weight
        if present is not None:
            rounded = rounded * present
        gram = (rounded.T.double() @ rounded.double(), rounded.T.double() @ (x - rounded).double())
        self._square = gram[0].to(weight.dtype)
        self._cross = (weight.double() @ gram[1].T).to(weight.dtype)  # (o, c)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Errors (k, o), less what all candidates share."""
        size = max(1, _CHUNK // self._weight.numel())
        parts = []
        for a, b in zip(first.split(size), second.split(size), strict=True):
            change = self._factor.rounded(self._weight, a, b).sub_(self._weight)  # (k, o, c)
            parts.append(((change @ self._square).sub_(2 * self._cross).mul_(change)).sum(2))
        return torch.cat(parts)


class InputErrors:
    """For y = W x: sum of (W x - W^ x^)^2 over all rows and output channels.

    W^ = Q R with orthonormal columns in Q: for more outputs than inputs, errors are measured in the smaller space of Q,
    where they are the same but for a constant. `present` as in `WeightErrors`.
    """

    def __init__(
        self, factor: Factor, x: Tensor, weight: Tensor, rounded: Tensor, present: Tensor | None = None
    ) -> None:
        self._factor, self._x, self._present = factor, x, present
        missing = x @ (weight - rounded).T
        if rounded.shape[0] > rounded.shape[1]:
            basis, square = torch.linalg.qr(rounded)
            missing, rounded = missing @ basis, square
        self._missing, self._map = missing, rounded.T.contiguous()

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Errors (k, 1), less what all candidates share."""
        total = torch.zeros(len(first), dtype=torch.float64, device=first.device)
        size = max(1, _CHUNK // (len(first) * max(self._map.shape)))
        parts = zip(self._x.split(size), self._missing.split(size), strict=True)
        present = None if self._present is None else self._present.split(size)
        for i, (x, missing) in enumerate(parts):
            change = self._factor.rounded(x, first, second).sub_(x)
            if present is not None:
                change.mul_(present[i])
            total += (change @ self._map).sub_(missing).square_().sum((1, 2), dtype=torch.float64)
        return total[:, None].to(first.dtype)


class ProductErrors:
    """For y = a b: sum of squared differences from the float product when the factor on one side is rounded, over all
    or for each index of axis 1 (heads) if the factor has quantizers for each.
    """

    def __init__(self, factor: Factor, x: Tensor, other: Tensor, exact: Tensor, *, left: bool) -> None:
        self._factor, self._x, self._other, self._exact, self._left = factor, x, other, exact, left

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Errors (k, g)."""
        groups = first.shape[1]
        total = torch.zeros(len(first), groups, dtype=torch.float64, device=first.device)
        one = max(t[0].numel() for t in (self._x, self._exact))
        candidates = max(1, min(len(first), _CHUNK // one))
        items = max(1, _CHUNK // (candidates * one))
        for x, other, exact in zip(*(t.split(items) for t in (self._x, self._other, self._exact)), strict=True):
            for start in range(0, len(first), candidates):
                chosen = slice(start, start + candidates)
                rounded = self._factor.rounded(x, first[chosen], second[chosen])
                error = (rounded @ other if self._left else other @ rounded).sub_(exact).square_()
                if groups > 1:
                    total[chosen] += error.movedim(2, 1).flatten(2).sum(2, dtype=torch.float64)
                else:
                    total[chosen, 0] += error.flatten(1).sum(1, dtype=torch.float64)
        return total.to(first.dtype)


def total(runs: Sequence[ProductErrors]) -> Score:
    """The errors of all runs of a product, whose shapes may differ."""
    return lambda first, second: torch.stack([errors(first, second) for errors in runs]).sum(0)
