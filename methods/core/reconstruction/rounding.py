"""Learned rounding of weights: AdaRound's rectified sigmoid, its regularizer and the annealing (METHODS: Q10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.numerics.affine import dequantize
from methods.core.numerics.quantizers import Stored, Uniform

# The sigmoid is stretched to (-0.1, 1.1), so that 0 and 1 are reached at finite values, and clipped.
_GAMMA, _ZETA = -0.1, 1.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip(1.2 σ(V) - 0.1, 0, 1) (AdaRound, eq. 23)."""
    return (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V with h(V) = h, for h in [0, 1]."""
    return torch.log((h - _GAMMA) / (_ZETA - h))


def regularizer(v: Tensor, beta: float) -> Tensor:
    """Σ (1 - |2 h(V) - 1|^β): 0 where every weight has decided, a scalar (AdaRound, eq. 24)."""
    return (1.0 - (2.0 * rectified_sigmoid(v) - 1.0).abs().pow(beta)).sum()


@dataclass(frozen=True)
class Annealing:
    """β over the steps: none during the warm-up, then from `start` to `end`, linearly or along half a cosine."""

    steps: int
    warmup: float
    start: float
    end: float
    shape: str  # `linear` or `cosine`

    def beta(self, step: int) -> float | None:
        """β at `step` (0, 1, ...), or None while the regularizer does not count."""
        first = self.warmup * self.steps
        if step < first:
            return None
        done = (step - first) / (self.steps - first)
        left = 1.0 - done if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.end + (self.start - self.end) * left


@dataclass(frozen=True)
class Rounded:
    """Weight quantizer that rounds each value down, or up where `up` is 1: s clip(⌊W/s⌋ + up).

    The grid is that of `base`. It is made for one weight of `up`'s shape.
    """

    base: Uniform
    up: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize the weight."""
        scale, low, high = self.base.aligned(weight.shape)
        return dequantize((weight / scale).floor_() + self.up, scale, low, high)

    def stored_as(self, bits: int) -> Stored | None:
        """As the grid."""
        return self.base.stored_as(bits)

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""
        return self.base.low

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return self.base.high


class SoftRounding:
    """A weight between its two neighbours on the grid: s clip(⌊W/s⌋ + h(V)), starting at W itself.

    Args:
        weight: the float weight; it is not changed.
        base: its grid, per output channel.
    """

    def __init__(self, weight: Tensor, base: Uniform) -> None:
        self.base = base
        self._grid = base.aligned(weight.shape)
        ratio = weight.detach() / self._grid[0]
        self._floor = ratio.floor()
        self.v = inverse_rectified_sigmoid(ratio - self._floor).requires_grad_()

    def soft(self) -> Tensor:
        """The weight as it is now, differentiable in `v`."""
        return dequantize(self._floor + rectified_sigmoid(self.v), *self._grid)

    def hard(self) -> Rounded:
        """The decision: up where h(V) is at least one half."""
        return Rounded(self.base, self.v.detach() >= 0.0)
