"""The shift-uniform-log2 quantizer of softmax outputs (METHODS: Q8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.affine import fake_quantize_, parameters
from methods.core.numerics.percentile import squared_errors
from methods.core.numerics.quantizers import Stored

_FINEST = 2.0**-16  # of the step, relative and absolute


@dataclass(frozen=True)
class Sulq:
    """Per-tensor quantizer x -> 2^⌊ŷ⌉ - η, where ŷ is y = log2(x + η) on a uniform grid over the range of y.

    Codes are clip(⌊y / s⌉ + z, 0, top). With η the finest codes are near 0 without being spent on values far below it,
    as those of a plain logarithm are; exponents are integers, so that a value is a shift and one subtraction.
    Gradients pass straight through both roundings. It is used like `Uniform`.
    """

    shift: Tensor  # η, a scalar like the next two
    scale: Tensor  # s, of y
    zero_point: Tensor  # z, a float that is an integer, perhaps outside the codes since y need not reach 0
    top: int  # the last code

    @classmethod
    def of(cls, x: Tensor, bits: int, shifts: Sequence[float], *, extra: bool) -> Self:
        """The one of least squared error on `x` >= 0 among those of the candidate `shifts`.

        `extra`: s = range / 2^bits and codes up to 2^bits, one more than `bits` hold, as many as the reference code's
        forward pass has (which chooses the shift without it); else s = range / (2^bits - 1) and codes up to 2^bits - 1.
        """
        top = 2**bits if extra else 2**bits - 1
        x = x.detach()
        least, greatest = torch.aminmax(x)
        eta = torch.tensor(shifts, dtype=x.dtype, device=x.device)
        low, high = (least + eta).log2(), (greatest + eta).log2()
        scale, zero = parameters(low, high, top, (low.abs() * _FINEST).clamp(min=_FINEST))  # all x may be the same
        shape = (-1, 1, 1)  # candidates x channels (one) x values

        def rounded(part: Tensor) -> Tensor:
            return shift_log2(part, eta.view(shape), scale.view(shape), zero.view(shape), top)

        best = squared_errors(x.reshape(1, -1), len(shifts), rounded).argmin()
        return cls(eta[best], scale[best], zero[best], top)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        if x.requires_grad and torch.is_grad_enabled():
            passed: Tensor = _Rounded.apply(x, self)
            return passed
        return shift_log2(x, self.shift, self.scale, self.zero_point, self.top)

    def stored_as(self, bits: int) -> Stored:
        """Logarithmic codes under one scale, of the logarithm; the shift is no scale."""
        found = Format(bits, "log")
        return found, found.scale_bits(1)

    def values(self) -> Tensor:
        """What each code stands for, ascending (top + 1,); neighbouring codes may stand for the same."""
        codes = torch.arange(self.top + 1, device=self.scale.device, dtype=self.scale.dtype)
        return ((codes - self.zero_point) * self.scale).round().exp2() - self.shift

    @property
    def low(self) -> Tensor:
        """Smallest representable value; at most 0, as all ranges: 2^⌊log2 η⌉ - η, of x = 0, may be either side of 0."""
        return self.values()[0].clamp(max=0.0)

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return self.values()[-1]


def shift_log2(x: Tensor, shift: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """`Sulq` as a function, its parameters broadcasting against `x`."""
    return fake_quantize_((x + shift).log2_(), scale, -zero, top - zero).round_().exp2_().sub_(shift)


class _Rounded(torch.autograd.Function):
    """With both roundings taken as the identity, dx̂/dx = 2^⌊ŷ⌉ / (x + η) within the codes, and 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Sulq) -> Tensor:
        ctx.quantizer = q
        result = shift_log2(x, q.shift, q.scale, q.zero_point, q.top)
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        q: Sulq = ctx.quantizer
        x, result = ctx.saved_tensors
        shifted = x + q.shift
        code = shifted.log2().div_(q.scale).round_().add_(q.zero_point)
        inside = (code >= 0) & (code <= q.top)
        return grad * inside * (result + q.shift) / shifted, None
