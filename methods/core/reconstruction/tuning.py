"""Weights that are themselves learned: in float, or behind straight-through rounding on a grid that stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from methods.core.numerics.quantizers import Stored, Uniform
from methods.core.reconstruction.rounding import SoftRounding


class Fixed(Protocol):
    """What is left of a weight when it has been learned; used as a weight's quantizer."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight as it is from now on, given the float one."""


class Learned(Protocol):
    """A weight while it is learned."""

    v: Tensor  # what the optimiser changes

    def soft(self) -> Tensor:
        """The weight to compute with, differentiable in `v`."""

    def hard(self) -> Fixed:
        """What has been learned."""


@dataclass(frozen=True)
class Tuned:
    """Stands for one learned weight, whatever it was before; without `base` it is the weight itself, not a quantizer.

    Attributes:
        weight: as learned, in float.
        base: its grid.
    """

    weight: Tensor
    base: Uniform | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The learned weight, on its grid if it has one."""
        return self.weight if self.base is None else self.base(self.weight)

    def stored_as(self, bits: int) -> Stored | None:
        """As the grid, if it has one."""
        return None if self.base is None else self.base.stored_as(bits)


class TunedFloat:
    """A weight learned without rounding."""

    def __init__(self, weight: Tensor) -> None:
        self.v = weight.detach().clone().requires_grad_()

    def soft(self) -> Tensor:
        """The weight."""
        return self.v

    def hard(self) -> Tuned:
        """The weight."""
        return Tuned(self.v.detach())


class TunedCodes:
    """A weight learned behind rounding to nearest, whose gradient is 1 within the grid's range and 0 outside."""

    def __init__(self, weight: Tensor, base: Uniform) -> None:
        self.v = weight.detach().clone().requires_grad_()
        self._base = base

    def soft(self) -> Tensor:
        """The rounded weight."""
        return self._base.straight_through(self.v)

    def hard(self) -> Tuned:
        """The rounded weight."""
        return Tuned(self.v.detach(), self._base)


def learned(how: str | None, weights: Mapping[str, Tensor], grids: Mapping[str, Uniform]) -> dict[str, Learned]:
    """What is learned of `weights`, by name, as `Phase.weights` says."""
    if how is None:
        return {}
    if how == "float":
        return {name: TunedFloat(weight) for name, weight in weights.items()}
    makers: dict[str, Callable[[Tensor, Uniform], Learned]] = {"rounding": SoftRounding, "codes": TunedCodes}
    make = makers[how]
    return {name: make(weight, grids[name]) for name, weight in weights.items()}


def unrounded(weights: Mapping[str, Tensor]) -> dict[str, Tuned]:
    """Stand-ins for quantizers that leave every weight as it is."""
    return {name: Tuned(weight.detach()) for name, weight in weights.items()}
