"""Quantizers of RepQ-ViT that are not uniform with an integer zero point; they are used like `Uniform`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.affine import fake_quantize, to_codes_
from methods.core.numerics.percentile import ends, squared_errors
from methods.core.numerics.quantizers import Stored, Uniform


@dataclass(frozen=True)
class LogSqrt2:
    """Quantizer of softmax outputs with base sqrt 2: x -> scale * 2^(-q / 2), q = round(-2 log2(x / scale)) (Q6).

    Values of more than `codes` - 1 become 0. Written 2^(-ceil(q / 2)) * (1 + (sqrt 2 - 1) (q mod 2)), q needs a shift
    and one of two factors.
    """

    scale: Tensor
    codes: int

    @classmethod
    def of(cls, x: Tensor, bits: int, percentiles: Sequence[float], *, extra: bool) -> Self:
        """The one of least squared error on `x` >= 0 among those whose scale is one of the percentiles of `x`.

        `extra`: zero is one more than the 2^bits codes; else it is the last of them.
        """
        rows = x.detach().reshape(1, -1)
        scales = ends(rows, percentiles)[1].clamp(min=torch.finfo(x.dtype).tiny)  # (percentiles, 1)
        codes = 2**bits if extra else 2**bits - 1
        errors = squared_errors(rows, len(percentiles), lambda part: log_sqrt2(part, scales[:, :, None], codes))
        return cls(scales[errors.argmin(), 0], codes)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        return log_sqrt2(x, self.scale, self.codes)

    def stored_as(self, bits: int) -> Stored:
        """Logarithmic codes under one scale."""
        found = Format(bits, "log")
        return found, found.scale_bits(1)

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""
        return torch.zeros_like(self.scale)

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return self.scale


def log_sqrt2(x: Tensor, scale: Tensor, codes: int) -> Tensor:
    """`LogSqrt2` as a function, `scale` broadcasting against `x`."""
    code = to_codes_((x / scale).log2_().mul_(-2), 0, None)
    return torch.where(code < codes, (code * -0.5).exp2_() * scale, 0.0)


class UnclippedZero(Uniform):
    """Uniform quantizer whose zero points need be no codes, as those of channels that do not reach 0."""

    def _with_gradient(self, x: Tensor) -> Tensor:
        return self.straight_through(x)  # torch's fake quantization refuses such zero points


@dataclass(frozen=True)
class FractionalZero:
    """Per-tensor uniform quantizer whose zero point is not an integer, as the reference code makes it.

    x -> scale * (clip(round(x / scale) + zero_point, 0, qmax) - zero_point): clipping adds two codes at the ends that
    are no whole steps away, so there are up to 2^bits + 1 values and no integer form.
    """

    scale: Tensor
    zero_point: Tensor  # float
    qmax: int

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        return fake_quantize(x, self.scale, -self.zero_point, self.qmax - self.zero_point)

    def stored_as(self, bits: int) -> Stored:
        """As a uniform one; the value that it has beyond 2^bits is not counted."""
        found = Format(bits)
        return found, found.scale_bits(1)

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return (self.qmax - self.zero_point) * self.scale
