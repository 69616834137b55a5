"""FQ-ViT's two quantizers of activations: power-of-two factors per channel, and powers of two as values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Stored, Uniform


class FactorSearch:
    """Finds a quantizer of steps s * 2^a, an exponent a for each channel: integers need one step and shifts by a.

    It chooses a in 0 .. K by the channel's squared error, the steps being (max - min) / (2^b - 1) * 2^(a - K). The
    range is that of the whole tensor and gives the zero point; a = K covers it (METHODS, section 7).

    Args:
        low: smallest value of the tensor, a scalar.
        high: largest one.
        bits: width b.
        largest: K.
        axis: of the channels.
    """

    def __init__(self, low: Tensor, high: Tensor, bits: int, largest: int, axis: int) -> None:
        whole = Uniform.asymmetric(low, high, bits)
        self._axis = axis
        # Multiples by powers of two are exact, so the ratios of the steps are.
        self._candidates = [whole.scaled(2.0 ** (a - largest)) for a in range(largest + 1)]
        self._errors: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Add the errors of one batch, whose axis `axis` holds the channels."""
        others = [i for i in range(x.dim()) if i != self._axis]
        errors = torch.stack([(q(x) - x).double().square_().sum(others) for q in self._candidates])
        self._errors = errors if self._errors is None else self._errors + errors

    def best(self) -> Factored:
        """The quantizer with the least error in each channel; of equal ones that with the smallest step."""
        assert self._errors is not None
        whole = self._candidates[0]
        scale = torch.stack([q.scale for q in self._candidates])[self._errors.argmin(0)]
        zero_point = whole.zero_point.expand_as(scale).contiguous()
        grid = PerChannel(self._axis)
        return Factored(scale, zero_point, whole.qmin, whole.qmax, grid, len(self._candidates))


@dataclass(frozen=True)
class Factored(Uniform):
    """Steps s * 2^a with an exponent a for each channel, of which there are `exponents` to choose from."""

    exponents: int = 1

    def stored_as(self, bits: int) -> Stored:
        """A step for all, and the exponents."""
        found = Format(bits, granularity="channel")
        return found, found.scale_bits(1) + self.scale.numel() * (self.exponents - 1).bit_length()


@dataclass(frozen=True)
class Log2:
    """Log2 quantizer of values in [0, 1]: q = round(-log2 x); 2^-q, and 0 from q = `powers` on (METHODS: Q5).

    With 2^b - 1 powers zero is one of the 2^b values; the reference has 2^b powers and zero besides.
    """

    powers: int

    def __call__(self, x: Tensor) -> Tensor:
        """Round `x`; gradients pass straight through."""
        rounded = from_exponents(x.detach().log2().neg_().round_(), self.powers)
        return x + (rounded - x).detach() if x.requires_grad and torch.is_grad_enabled() else rounded

    def stored_as(self, bits: int) -> Stored:
        """Powers of two themselves, without a scale."""
        return Format(bits, "log"), 0

    @property
    def low(self) -> Tensor:
        """Zero."""
        return torch.tensor(0.0)

    @property
    def high(self) -> Tensor:
        """One."""
        return torch.tensor(1.0)


def from_exponents(q: Tensor, powers: int) -> Tensor:
    """2^-q for q < `powers`, else 0; `q` is floating-point and may be infinite, negative values count as 0."""
    return torch.where(q < powers, torch.exp2(-q.clamp(0, powers)), 0.0)
