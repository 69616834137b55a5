"""Softmax and LayerNorm as FQ-ViT computes them on integers, emulated in floating point.

Emulated are the integers' values: which of them are rounded, where, and to what width. Not emulated are the widths of
accumulators: the reference's exponentials overflow 32 bits, here they do not. Exponentials and LayerNorm's sums are in
double, exact up to 2^53; the products behind are in float32. No gradient passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from methods.core.integer.quantizers import from_exponents

# exp(p) on (-ln 2, 0] is about A p^2 + B p + 1: I-BERT's polynomial, in the reference's digits.
A, B = 0.35815147, 0.96963238
LN2 = 0.6931
# Exponentials on a finer grid would not fit a double's 53 bits; 8-bit scores on one span less than 0.25 anyway.
FINEST = 2**-10
SHIFT = 30  # exponentials are integers times 2^-30, so that 2^-q of the range reduction is a shift


def int_exp(codes: Tensor, step: float) -> Tensor:
    """Integers e with e * A * step^2 * 2^-30 close to exp(codes * step), for integers `codes` <= 0 in double.

    Range reduction codes = q * c + r with c = floor(-ln 2 / step), then ((r + b) r + c0) * 2^(30 - q) with
    b = floor(B / A / step) and c0 = floor(1 / A / step^2) (METHODS, section 7).
    """
    ln2 = math.floor(-LN2 / step)
    codes = codes.clamp(min=SHIFT * ln2)
    q = (codes / ln2).floor_()
    r = codes.sub_(q * ln2)
    # At least 1: on a coarse grid even exp(0) would round to zero, and the row's sum with it.
    constant = max(math.floor(1 / A / step**2), 1)
    polynomial = (r + math.floor(B / A / step)).mul_(r).add_(constant)
    return polynomial.mul_(torch.exp2(SHIFT - q)).floor_().clamp_(min=0)


def fine_grid(codes: Tensor, step: float, coarsest: float | None) -> tuple[Tensor, float]:
    """The same values on a grid of step at most `coarsest`: the codes shifted left, the step divided."""
    if coarsest is None or step <= coarsest:
        return codes, step
    factor = 2.0 ** math.ceil(math.log2(step / coarsest))
    return codes * factor, step / factor


@dataclass(frozen=True)
class LogIntSoftmax:
    """Log-int-softmax: 2^-q with q = log2 of round(sum of exponentials / exponential), rounded as integers can.

    It rounds at 1.5 * 2^k, not at sqrt(2) * 2^k as `Log2` does. Rows need not sum to one.

    Attributes:
        step: step of the grid that the scores are on.
        powers: from q = `powers` on the result is 0.
        coarsest: see `fine_grid`.
    """

    step: float
    powers: int
    coarsest: float | None = None

    def __call__(self, x: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
        """In place of `softmax(x, dim)`; scores off the grid, such as masked ones, are rounded to it."""
        codes = (x / max(self.step, FINEST)).round_()
        # A row that is masked altogether has no difference to its maximum: all its weights are equal.
        below = (codes.amax(dim, keepdim=True) - codes).nan_to_num_(0.0)
        exponentials = _look_up(self._exponentials, below)
        ratio = (exponentials.sum(dim, keepdim=True) / exponentials).round_()
        # The exponent field of a double, after its fraction was rounded up or down at one half.
        q = ((ratio.view(torch.int64) + 2**51) >> 52) - 1023
        return _look_up(from_exponents(torch.arange(self.powers + 1.0), self.powers), q).to(x.dtype)

    @cached_property
    def _exponentials(self) -> Tensor:
        """`int_exp` of the codes 0, -1, ...: 5 times faster than computing it for each score."""
        grid = max(self.step, FINEST)
        codes = -torch.arange(1 + SHIFT * math.ceil(2 * LN2 / grid), dtype=torch.float64)
        return int_exp(*fine_grid(codes, grid, self.coarsest))


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Entries of `table` (n,); what is beyond the end has the last one's."""
    places = index.clamp(max=len(table) - 1).int()
    return table.to(index.device).index_select(0, places.flatten()).view(index.shape)


@dataclass(frozen=True)
class IntegerLayerNorm:
    """LayerNorm whose per-value work is one multiplication with 8 bits, one addition and one shift.

    The inputs are integers x on the finest channel's grid s (coarser ones are shifted left). mu and sigma come from
    sums of x and x^2; A = s gamma / (sigma s_out) becomes sign, M in 0 .. 255 and N in 0 .. 31 with |A| ~ M 2^-N, and

        y = round((sign M x + B) 2^-N) s_out,    B = round((beta - mu gamma / sigma) / s_out 2^N)

    (METHODS, section 7). As in the reference there is no epsilon, and gamma and beta are float. M truncates A, so the
    result is within |gamma s x / sigma| / 128 + s_out (1 + 2^-N) / 2 of LayerNorm's, if |A| is in 2^-24 .. 256.

    Attributes:
        steps: (channels,) steps of the input's grids, powers of two times the smallest.
        out_step: step of the output's grid, a scalar or (channels,).
    """

    steps: Tensor
    out_step: Tensor

    def __call__(
        self, x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any,
        **__: Any,
    ) -> Tensor:  # fmt: skip
        """In place of `layer_norm(x, (channels,), weight, bias, eps)`."""
        fine = self.steps.min()
        integers = (x / self.steps).round_().mul_((self.steps / fine).round())
        exact = integers.double()
        count = x.shape[-1]
        total = exact.sum(-1, keepdim=True)
        spread = (count * exact.square().sum(-1, keepdim=True) - total.square()).clamp_(min=0)  # (C sigma / s)^2
        # A constant token has no deviation from its mean: its result is beta, as LayerNorm's epsilon has it.
        inverse = torch.where(spread > 0, count * spread.clamp(min=1).rsqrt(), 0.0)  # s / sigma
        shift = (total / count * inverse).to(x.dtype)  # mu / sigma
        gain = inverse.to(x.dtype) / self.out_step
        offset = -shift / self.out_step
        if weight is not None:
            gain, offset = gain * weight, offset * weight
        if bias is not None:
            offset = offset + bias / self.out_step
        exponent = torch.frexp(gain.abs())[1] - 1  # floor(log2 |A|)
        power = torch.exp2((7 - exponent).clamp(0, 31).to(x.dtype))
        # No |A| gives a useful exponent for 0; M is 0 there whatever N is.
        multiplier = (gain.abs() * power).floor_().clamp_(0, 255).copysign_(gain)
        return (multiplier * integers + (offset * power).round()).div_(power).round_().mul_(self.out_step)
