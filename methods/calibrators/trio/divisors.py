"""Divisors rounded to powers of two, so that a division is a shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.quantizers import Stored, Uniform


@dataclass(frozen=True)
class PowerOfTwo:
    """x > 0 -> 2^y, least <= y <= largest: y = floor(log2 x), or one more where x is above the geometric middle."""

    least: int
    largest: int
    like: Tensor  # a scalar, for type and device

    @classmethod
    def of(cls, least: int, largest: int, bits: int, seen: Tensor) -> PowerOfTwo:
        """With at most 2^bits powers; of more, those up to the one of `seen`, the largest divisor."""
        codes = 2**bits
        if largest - least + 1 > codes:
            top = int(exponents(seen, least + codes - 1, largest))
            least, largest = top - codes + 1, top
        return cls(least, largest, seen.detach())

    def __call__(self, x: Tensor) -> Tensor:
        """Round `x` to a power of two."""
        return torch.exp2(exponents(x, self.least, self.largest))

    def stored_as(self, bits: int) -> Stored:
        """Logarithmic codes without a scale."""
        found = Format(bits, "log")
        return found, 0

    @property
    def low(self) -> Tensor:
        """Smallest power."""
        return torch.exp2(torch.full_like(self.like, self.least))

    @property
    def high(self) -> Tensor:
        """Largest power."""
        return torch.exp2(torch.full_like(self.like, self.largest))


def exponents(x: Tensor, least: int, largest: int) -> Tensor:
    """The exponents of `PowerOfTwo`, in the type of `x`."""
    positive = x.clamp(min=2.0**least)
    below = positive.log2().floor()
    return (below + (positive / below.exp2() > (below + 1).exp2() / positive)).clamp(least, largest)


@dataclass(frozen=True)
class Quotient:
    """Quantizer of a tensor (..., places) some of whose places divide the others."""

    dividend: Uniform
    divisor: PowerOfTwo
    places: tuple[int, ...]
    axis: int = -1  # see `harness.api.contracts.Grid`

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize both."""
        found = self.dividend(x).clone()
        found[..., list(self.places)] = self.divisor(x[..., list(self.places)])
        return found

    @property
    def low(self) -> Tensor:
        """Smallest dividend."""
        return self.dividend.low

    @property
    def high(self) -> Tensor:
        """Largest value of both."""
        return torch.maximum(self.dividend.high, self.divisor.high)


@dataclass(frozen=True)
class Places:
    """Takes places of the last axis, or all but them."""

    places: tuple[int, ...]
    others: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The values there; of no places at all, all of `x`."""
        if not self.places:
            return x
        chosen = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        chosen[list(self.places)] = True
        return x[..., ~chosen if self.others else chosen]
