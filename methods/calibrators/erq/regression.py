"""ERQ's arithmetic on one linear layer, from sums of products of its inputs alone (METHODS, section 9.2).

A layer computes y = W x + b. Where it has a bias that may change, x has a last entry 1 and W a last column b, which is
never rounded. x is the float model's input and x̄ the quantized one's; all is in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from methods.core.numerics.affine import quantize
from methods.core.numerics.quantizers import Stored, Uniform

_CHUNK = 2**24  # values of an input that are turned to double at once


@dataclass(frozen=True)
class Moments:
    """Sums over tokens: `second` of x̄ x̄ᵀ, (c, c), and `cross` of x̄ (x - x̄)ᵀ, (c, c)."""

    second: Tensor
    cross: Tensor

    @classmethod
    def of(cls, quantized: Tensor, reference: Tensor, *, bias: bool) -> Self:
        """From x̄ and x, both (..., channels); with `bias` a channel of ones is added to both."""
        x_q, x = quantized.flatten(0, -2), reference.flatten(0, -2)
        c = x.shape[1] + bias
        second, cross = torch.zeros(2, c, c, dtype=torch.float64, device=x.device)
        rows = max(1, _CHUNK // c)
        for part, exact in zip(x_q.split(rows), x.split(rows), strict=True):
            padded, error = part.double(), (exact - part).double()
            if bias:
                padded = torch.cat([padded, padded.new_ones(len(padded), 1)], 1)
                error = torch.cat([error, error.new_zeros(len(error), 1)], 1)
            second += padded.T @ padded
            cross += padded.T @ error
        return cls(second, cross)


def activation_regression(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    """Aqer: W + ΔW (out, c), where ΔW makes up for activations' errors in the sense of least squares.

    ΔWᵀ = (Σ x̄ x̄ᵀ + λ I)⁻¹ Σ x̄ (y - W x̄ - b)ᵀ with y = W x + b, so that the last factor is (x - x̄)ᵀ Wᵀ.
    """
    change: Tensor = torch.linalg.solve(_damped(moments.second, ridge), moments.cross @ weight.T).T
    return weight + change


def weight_regression(
    weight: Tensor, grid: Uniform, second: Tensor, *, ridge: float, refinements: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Wqer: columns of W (out, c) are rounded half of those left at a time, and those left make up for the error.

    With 1 for the columns just rounded, δ₁ their error after refinement, and 2 for those left, the bias among them,
    δ₂ᵀ = -(Σ x̄₂ x̄₂ᵀ + λ I)⁻¹ Σ x̄₂ x̄₁ᵀ δ₁ᵀ is added to the latter.

    Args:
        weight: W.
        grid: the quantizer of its output channels.
        second: Σ x̄ x̄ᵀ, (c, c).
        ridge: λ.
        refinements: see `refine`.
        bias: the last column is a bias, which is not rounded.

    Returns:
        The codes less their zero points, of all columns but the bias, and W as it is in the end (out, c).
    """
    weight, scale = weight.clone(), _grid(grid, weight)[0]
    start, end = 0, weight.shape[1] - bias
    codes = torch.zeros_like(weight[:, :end])
    while start < end:
        stop = start + (end - start + 1) // 2
        now, later = slice(start, stop), slice(stop, None)
        target = weight[:, now]
        codes[:, now] = refine(target, grid, second[now, now], refinements)
        error = codes[:, now] * scale - target
        weight[:, now] += error
        if stop < weight.shape[1]:
            weight[:, later] -= torch.linalg.solve(_damped(second[later, later], ridge), second[later, now] @ error.T).T
        start = stop
    return codes, weight


def refine(target: Tensor, grid: Uniform, second: Tensor, steps: int) -> Tensor:
    """Codes less the zero point (out, m) of `target` (out, m) after rounding refinement.

    All are rounded to the nearest first. Then, in at most `steps` steps, one weight of each output channel goes to the
    other side of its float value, which lowers the proxy δ M δᵀ of the channel's output error, δ its rounding errors.
    The weight is that with the largest derivative among those whose change goes downhill; a channel stops when its
    choice does not lower the proxy. M = E[x̄] E[x̄]ᵀ + Cov[x̄] is E[x̄ x̄ᵀ], here the sum `second` (m, m): its scale does
    not matter.
    """
    scale, low, high = _grid(grid, target)
    codes = quantize(target, scale, low, high)
    error = codes * scale - target
    slope = error @ second  # half the derivative
    for _ in range(steps):
        flip = -error.sign()
        downhill = (error * slope > 0) & (codes + flip >= low) & (codes + flip <= high)
        size, best = torch.where(downhill, slope.abs(), -1.0).max(1, keepdim=True)
        flip = flip.gather(1, best)
        step = flip * scale
        change = 2.0 * step * slope.gather(1, best) + step.square() * second.diagonal()[best]
        accepted = (size > 0) & (change < 0)
        if not accepted.any():
            break
        flip, step = torch.where(accepted, flip, 0.0), torch.where(accepted, step, 0.0)
        codes.scatter_add_(1, best, flip)
        error.scatter_add_(1, best, step)
        slope += step * second[best[:, 0]]
    return codes


@dataclass(frozen=True)
class Coded:
    """Weight quantizer whose codes were chosen beforehand; it gives scale * codes whatever the float weight.

    Attributes:
        base: the grid.
        codes: less the zero point, of the weight's shape (out, in).
    """

    base: Uniform
    codes: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return self.codes.to(weight) * self.base.aligned(weight.shape)[0]

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


def nearest(weight: Tensor, grid: Uniform) -> Tensor:
    """Codes less the zero point of a weight (out, c), each rounded by itself."""
    return quantize(weight, *_grid(grid, weight))


def _grid(base: Uniform, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale in double precision, smallest and largest code less the zero point, all (out, 1)."""
    scale, low, high = base.aligned(weight.shape)
    return scale.double(), low, high


def _damped(second: Tensor, ridge: float) -> Tensor:
    return second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device)
