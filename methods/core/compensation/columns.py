"""GPTQ's arithmetic on one layer: columns of a weight in their order, from sums of products of its inputs alone.

A layer computes y = W x. With H = Σ x xᵀ, damped, rounding column j away by δ_j costs least if the columns behind it
change by -δ_j / U_jj U_j,:, where UᵀU = H⁻¹ and U is upper triangular (Frantar et al., ICLR 2023, section 3.3). All is
in double precision, and all output channels go at once.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.affine import fake_quantize
from methods.core.numerics.microscaling import Element, scaled, shared_exponent
from methods.core.numerics.quantizers import Uniform


class Rounder(Protocol):
    """How columns are rounded. `size` of them in a row share what is found when the first of them is reached."""

    size: int

    def start(self, columns: slice, weight: Tensor, inverse: Tensor) -> None:
        """Columns (out, size or fewer), changed by all before them, are to be rounded next.

        Args:
            columns: their place in the weight.
            weight: they themselves.
            inverse: diagonal of H⁻¹ there, (size,).
        """

    def column(self, number: int, values: Tensor) -> Tensor:
        """Column `number` of those that were started last, rounded; `values` (out,) are as they are by now."""


class Channels:
    """Every output channel has a grid of its own, which stays as it is. Values are rounded in the grid's type, as it
    does by itself: a symmetric grid's largest value lies between two codes.

    Args:
        grid: with a scale for each output channel.
    """

    size = 1

    def __init__(self, grid: Uniform) -> None:
        self._scale, zero = grid.scale, grid.zero_point
        self._low, self._high = grid.qmin - zero, grid.qmax - zero

    def start(self, columns: slice, weight: Tensor, inverse: Tensor) -> None:
        """Nothing is left to find."""

    def column(self, number: int, values: Tensor) -> Tensor:
        """See `Rounder`."""
        return fake_quantize(values.to(self._scale.dtype), self._scale, self._low, self._high).double()


class Blocks:
    """Blocks of a microscaling format, whose scales are found when they are reached.

    Args:
        stored: the format; its kind is int or float.
    """

    def __init__(self, stored: Format) -> None:
        self.size = stored.group or 1
        self._element = Element.of(stored)

    def start(self, columns: slice, weight: Tensor, inverse: Tensor) -> None:
        """Find the scales."""
        self._exponent = shared_exponent(weight, self._element)

    def column(self, number: int, values: Tensor) -> Tensor:
        """See `Rounder`."""
        return scaled(values[:, None], self._exponent, self._element)[:, 0]


def alone(weight: Tensor, rounder: Rounder) -> Tensor:
    """The weight (out, c) with every column rounded by itself, in double precision."""
    rows, ones = weight.double(), weight.new_ones(weight.shape[1], dtype=torch.float64)
    found = []
    for begin in range(0, rows.shape[1], rounder.size):
        columns = slice(begin, min(begin + rounder.size, rows.shape[1]))
        rounder.start(columns, rows[:, columns], ones[columns])
        found += [rounder.column(j - begin, rows[:, j]) for j in range(begin, columns.stop)]
    return torch.stack(found, 1)


def inverse_factor(second: Tensor, damping: float) -> Tensor:
    """U (c, c), upper triangular, with UᵀU = (H + d I)⁻¹; d is `damping` times the mean of the diagonal of H.

    Inputs that are all 0 say nothing, and any d leaves their weights to be rounded; 0 would be singular.
    """
    mean = float(second.diagonal().mean()) or 1.0
    damped = second.double() + damping * mean * torch.eye(len(second), dtype=torch.float64, device=second.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def compensated(weight: Tensor, second: Tensor, rounder: Rounder, *, damping: float, block: int) -> Tensor:
    """The rounded weight (out, c), in double precision.

    Args:
        weight: (out, c).
        second: H, (c, c), in whatever units.
        rounder: rounds its columns.
        damping: see `inverse_factor`; without bound, every column is rounded by itself.
        block: columns after which the error is passed on to all behind them; which changes the time, not the result
            (but for the order of sums). It is made a multiple of what the rounder looks at together.
    """
    factor = inverse_factor(second, damping)
    inverse = factor.square().sum(0)
    current, rounded = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    width = -(-block // rounder.size) * rounder.size
    for begin in range(0, weight.shape[1], width):
        end = min(begin + width, weight.shape[1])
        errors = torch.zeros_like(current[:, begin:end])
        for j in range(begin, end):
            number = (j - begin) % rounder.size
            if number == 0:
                columns = slice(j, min(j + rounder.size, end))
                rounder.start(columns, current[:, columns], inverse[columns])
            rounded[:, j] = rounder.column(number, current[:, j])
            errors[:, j - begin] = (current[:, j] - rounded[:, j]) / factor[j, j]
            current[:, j:end] -= errors[:, j - begin, None] * factor[j, j:end]
        current[:, end:] -= errors @ factor[begin:end, end:]
    return rounded
