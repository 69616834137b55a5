"""The adaptive-base logarithmic quantizer (METHODS: Q7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.affine import to_codes_
from methods.core.numerics.quantizers import Stored

RESOLUTION = 37  # r: bases are 2^(q / r)
BASES = (10, 138)  # smallest and largest q: bases from 1.2 to 13.3


def table(bits: int) -> Tensor:
    """T (37,): 2^(-j / 37) rounded to multiples of 1 / (2^(bits + 1) - 2), as the integer form stores it."""
    steps = (1 << (bits + 1)) - 2
    return (torch.exp2(-torch.arange(RESOLUTION, dtype=torch.float64) / RESOLUTION) * steps).round() / steps


def levels(base: Tensor, bits: int, codes: int) -> Tensor:
    """Values (*base.shape, codes + 1) of all codes n at scale 1: 2^-floor(n q / 37) T[n q mod 37]; the last one is 0.

    Args:
        base: q, integers.
        bits: width, which sets how finely T is rounded.
        codes: how many codes are not zero.
    """
    power = torch.arange(codes, device=base.device) * base.long()[..., None]
    fraction = table(bits).to(base.device)[power % RESOLUTION]
    values = torch.exp2(-(power // RESOLUTION).double()) * fraction
    return torch.cat([values, torch.zeros_like(values[..., :1])], -1).float()


def codes_of(x: Tensor, scale: Tensor, base: Tensor, codes: int) -> Tensor:
    """Codes n = round(-log2(x / s) 37 / q) as integers, at most `codes`; x >= 0, all broadcasting."""
    exponent = (x / scale).log2_() * (-RESOLUTION / base)
    return to_codes_(exponent, 0, codes).long()


@dataclass(frozen=True)
class AdaLog:
    """Per-tensor quantizer x -> s 2^-floor(n q / 37) T[n q mod 37] - shift, n = round(-log2((x + shift) / s) 37 / q).

    Subtracting the shift again is the paper's bias reparameterisation: a layer with rounded weight W and bias b
    computes W (y - shift) + b = W y + (b - shift sum_c W_c) from the codes' values y. It is used like `Uniform`.
    """

    scale: Tensor
    base: Tensor  # q, a scalar
    bits: int
    codes: int  # 2^bits - 1, or 2^bits if zero has a code of its own
    shift: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        code = codes_of((x + self.shift).clamp_(min=0), self.scale, self.base, self.codes)
        return self._values[code]

    def stored_as(self, bits: int) -> Stored:
        """Logarithmic codes under one scale; the base is no scale."""
        found = Format(bits, "log")
        return found, found.scale_bits(1)

    @cached_property
    def _values(self) -> Tensor:
        return levels(self.base, self.bits, self.codes) * self.scale - self.shift

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""
        return self._values[-1]

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return self._values[0]
