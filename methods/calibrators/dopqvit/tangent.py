"""TanQ, the tangent-shaped quantizer of softmax outputs, in a form that has the properties that are known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.quantizers import Stored


@dataclass(frozen=True)
class TanQ:
    """Values x in [0, 1] in equal steps of y = 1/2 + tan(a (2 x - 1)) / (2 tan a), with 2^bits codes from 0 to 1.

    Steps of x are finest at both ends, by 1 / cos(a)^2 = 1 + tangent^2 against the middle; a = 0 is uniform.

    Attributes:
        bits: of a code.
        tangent: tan(a), 0 or more.
    """

    bits: int
    tangent: float

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`; gradients pass straight through."""
        codes = torch.bucketize(x.detach(), self._edges.to(x))
        rounded = self.values.to(x)[codes]
        return x + (rounded - x).detach() if x.requires_grad and torch.is_grad_enabled() else rounded

    def stored_as(self, bits: int) -> Stored:
        """Equal steps, if of another function of the value, which has one parameter."""
        found = Format(bits)
        return found, found.scale_bits(1)

    @cached_property
    def values(self) -> Tensor:
        """What each code stands for, ascending, (2^bits,) in double precision."""
        return self._at(torch.arange(2**self.bits, dtype=torch.float64))

    @cached_property
    def _edges(self) -> Tensor:
        """Where rounding goes to the next code, (2^bits - 1,): half-way in y."""
        return self._at(torch.arange(2**self.bits - 1, dtype=torch.float64) + 0.5)

    def _at(self, codes: Tensor) -> Tensor:
        y: Tensor = codes / (2**self.bits - 1)
        if not self.tangent:
            return y
        x: Tensor = (0.5 + torch.atan((2 * y - 1) * self.tangent) / (2 * math.atan(self.tangent))).clamp(0, 1)
        return x

    @property
    def low(self) -> Tensor:
        """Zero."""
        return torch.tensor(0.0)

    @property
    def high(self) -> Tensor:
        """One."""
        return torch.tensor(1.0)
