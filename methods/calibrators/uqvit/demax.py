"""DeMax, the quantizer of softmax outputs whose rows keep their largest value in float."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.numerics.affine import fake_quantize


@dataclass(frozen=True)
class DeMax:
    """Softmax outputs, rows along the last axis: the largest value of a row stays as it is, the others have 2^bits
    codes with the step (second largest value) / (2^bits - 1).

    Neither is known before the row is: the quantizer is dynamic and not one of `bits` bits, and says so.
    """

    bits: int
    dynamic = "the largest value of every row stays in float, and the others have a step of the row's own"

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`; gradients pass straight through."""
        rounded = demax(x.detach(), self.bits)
        return x + (rounded - x).detach() if x.requires_grad and torch.is_grad_enabled() else rounded

    def stored_as(self, bits: int) -> None:
        """There is no name for it among the formats."""

    @property
    def low(self) -> Tensor:
        """Zero."""
        return torch.tensor(0.0)

    @property
    def high(self) -> Tensor:
        """One."""
        return torch.tensor(1.0)


def demax(x: Tensor, bits: int) -> Tensor:
    """`DeMax` of `x` >= 0; of several largest values in a row one stays in float."""
    largest, place = x.max(-1, keepdim=True)
    others = x.scatter(-1, place, 0.0)
    top = 2**bits - 1
    step = (others.amax(-1, keepdim=True) / top).clamp(min=torch.finfo(x.dtype).tiny)
    return fake_quantize(others, step, 0, top).scatter(-1, place, largest)
