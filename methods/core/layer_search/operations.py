"""Products of two factors, computed for many candidates of one of them at once.

A *factor* is what a multiplication takes: an activation or a weight. Factor 0 is a layer's input or a matrix product's
left operand, factor 1 its weight or the right operand. A tensor that is judged by itself has a single factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Operation(Protocol):
    """One multiplication."""

    def output(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Its result."""

    def candidates(self, which: int, candidates: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """(k, *output) with factor `which` replaced by each of `candidates` (k, *factor)."""


@dataclass(frozen=True)
class Linear:
    """x W^T + b: x (n, ..., in), W (out, in)."""

    bias: Tensor | None = None

    def output(self, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        x, weight = factors
        return functional.linear(x, weight, self.bias)

    def candidates(self, which: int, candidates: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`. Weights stand side by side in one product."""
        if which == 0:
            return functional.linear(candidates, factors[1], self.bias)
        k = len(candidates)
        bias = None if self.bias is None else self.bias.repeat(k)
        side_by_side = functional.linear(factors[0], candidates.flatten(0, 1), bias)
        return torch.unflatten(side_by_side, -1, (k, -1)).movedim(-2, 0)


@dataclass(frozen=True)
class Convolution:
    """A convolution of x (n, in, h, w), transposed or not.

    `rest` and `named` are the arguments of `function`, torch's own, after the weight.
    """

    rest: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Tensor] = functional.conv2d

    def output(self, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        return self.function(*factors, *self.rest, **self.named)

    def candidates(self, which: int, candidates: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`. One call per candidate for weights, since they may be grouped; convolutions are few."""
        if which == 0:
            return torch.unflatten(self.output((candidates.flatten(0, 1), factors[1])), 0, (len(candidates), -1))
        return torch.stack([self.output((factors[0], weight)) for weight in candidates])


class Product:
    """A @ B."""

    def output(self, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        return torch.matmul(*factors)

    def candidates(self, which: int, candidates: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        return torch.matmul(candidates, factors[1]) if which == 0 else torch.matmul(factors[0], candidates)


class Itself:
    """A tensor that no layer is judged by, such as the residual stream."""

    def output(self, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        return factors[0]

    def candidates(self, which: int, candidates: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Operation`."""
        return candidates
