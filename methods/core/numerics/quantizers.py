"""Quantizers: functions on tensors that round to at most 2^bits values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.affine import asymmetric_parameters, fake_quantize, symmetric_step
from methods.core.numerics.granularity import PER_TENSOR, Granularity, PerChannel, PerGroup, PerHead, PerTensor
from methods.core.numerics.straight_through import StraightThrough

Stored = tuple[Format, int]  # how values are stored, and the bits of all scales; zero points are not among them


class Quantizer(Protocol):
    """What quantizes an activation: `Uniform`, or a method's own. The ends are scalars, for the summary.

    One that has `stored_as(bits) -> Stored | None`, as all of this project have, tells records its format. So may a
    quantizer of weights.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`; gradients pass straight through inside the range."""

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""

    @property
    def high(self) -> Tensor:
        """Largest representable value."""


@dataclass(frozen=True)
class Uniform:
    """Uniform quantizer x -> scale * (clip(round(x / scale) + zero_point, qmin, qmax) - zero_point).

    `scale` and `zero_point` are scalars (per tensor) or vectors with one entry for each block of the granularity; the
    zero point is an integer. Gradients pass straight through inside the range.
    """

    scale: Tensor
    zero_point: Tensor  # int32
    qmin: int
    qmax: int
    granularity: Granularity = PER_TENSOR

    @classmethod
    def asymmetric(cls, low: Tensor, high: Tensor, bits: int, granularity: Granularity = PER_TENSOR) -> Self:
        """Codes 0 .. 2^bits - 1 over [low, high]: step (high - low) / (2^bits - 1) (METHODS: Q3).

        The range is widened to contain 0, which FQ-ViT's and PSAQ-ViT's code does not do: there a positive minimum
        clips the zero point and the top of the range saturates.
        """
        scale, zero_point = asymmetric_parameters(low, high, bits)
        return cls(scale, zero_point.to(torch.int32), 0, 2**bits - 1, granularity)

    @classmethod
    def symmetric(cls, low: Tensor, high: Tensor, bits: int, granularity: Granularity = PER_TENSOR) -> Self:
        """Codes -2^(bits-1) .. 2^(bits-1) - 1 with step max(-low, high) / ((2^bits - 1) / 2), zero point 0.

        The divisor is a half-integer (127.5), as in PSAQ-ViT's and FQ-ViT's code: the largest value is pulled in by
        half a step (METHODS: Q1).
        """
        scale = symmetric_step(torch.maximum(-low, high), bits)
        half = 2 ** (bits - 1)
        return cls(scale, torch.zeros_like(scale, dtype=torch.int32), -half, half - 1, granularity)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        if x.requires_grad and torch.is_grad_enabled():
            return self._with_gradient(x)
        # Plain arithmetic: on a CPU it is 5 to 20 times faster than torch.fake_quantize_*, which also makes the mask of
        # its gradient.
        if isinstance(self.granularity, PerTensor):
            return fake_quantize(x, self.scale, *self._ends)
        return fake_quantize(x, *self.aligned(x.shape))

    def aligned(self, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, smallest and largest code less the zero point, all of which broadcast against a tensor of `shape`."""
        scale, zero = (self.granularity.aligned(each, shape) for each in (self.scale, self.zero_point))
        return scale, self.qmin - zero, self.qmax - zero

    @cached_property
    def _ends(self) -> tuple[int, int]:
        """Ends of the codes less the zero point, per tensor; as numbers, which clamp twice as fast as tensors."""
        zero_point = int(self.zero_point)
        return self.qmin - zero_point, self.qmax - zero_point

    def _with_gradient(self, x: Tensor) -> Tensor:
        match self.granularity:
            case PerTensor():
                return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)
            case PerChannel(axis):
                return torch.fake_quantize_per_channel_affine(
                    x, self.scale, self.zero_point, axis % x.dim(), self.qmin, self.qmax
                )
        return self.straight_through(x)

    def straight_through(self, x: Tensor) -> Tensor:
        """What it makes of `x`, with a gradient in `x` alone; unlike torch's fake quantization this takes any
        granularity, and zero points that are no code themselves.
        """
        rounded: Tensor = StraightThrough.apply(x, *self.aligned(x.shape))
        return rounded

    def scaled(self, factor: float | Tensor) -> Self:
        """The same codes with the step multiplied by `factor`; the zero point stays."""
        return type(self)(self.scale * factor, self.zero_point, self.qmin, self.qmax, self.granularity)

    def stored_as(self, bits: int) -> Stored | None:
        """The format of values of `bits` bits; None for blocks, which have no name among the formats."""
        match self.granularity:
            case PerTensor():
                found = Format(bits)
            case PerChannel():
                found = Format(bits, granularity="channel")
            case PerHead():
                found = Format(bits, granularity="head")
            case PerGroup(_, size):
                found = Format(bits, granularity="group", group=size)
            case _:
                return None
        return found, found.scale_bits(self.scale.numel())

    @property
    def axis(self) -> int | None:
        """The axis whose indices have a scale each; None if there is no such axis."""
        return self.granularity.axis if isinstance(self.granularity, PerChannel | PerHead) else None

    @property
    def low(self) -> Tensor:
        """Smallest value that some block can represent, a scalar; at most 0 if there are several, since padding may put
        zeros beside the blocks' own values.
        """
        low = (self.qmin - self.zero_point) * self.scale
        return low.min().clamp(max=0.0) if low.dim() else low

    @property
    def high(self) -> Tensor:
        """Largest value that some block can represent, a scalar; at least 0 if there are several."""
        high = (self.qmax - self.zero_point) * self.scale
        return high.max().clamp(min=0.0) if high.dim() else high


@dataclass(frozen=True)
class Divided:
    """Rounds (x - shift) / ratio on one grid; the layer behind it has the ratio in its weight, the shift in its bias.

    In codes it is a step for each channel, s ratio, whose products share the step s.
    """

    base: Uniform
    ratio: Tensor  # broadcasts against x: (channels,) where these are the last axis; (1,) if there is none
    shift: Tensor | None = None  # likewise

    def __call__(self, x: Tensor) -> Tensor:
        """Move, quantize and dequantize `x`."""
        return self.base(self.moved(x))

    def moved(self, x: Tensor) -> Tensor:
        """What is rounded."""
        return (x if self.shift is None else x - self.shift) / self.ratio

    def stored_as(self, bits: int) -> Stored:
        """A step for each channel."""
        if self.ratio.numel() == 1:
            return self.base.stored_as(bits) or (Format(bits), 0)
        found = Format(bits, granularity="channel")
        return found, found.scale_bits(self.ratio.numel())

    @property
    def low(self) -> Tensor:
        """Smallest representable value of what it gives."""
        return self.base.low

    @property
    def high(self) -> Tensor:
        """Largest one."""
        return self.base.high


def weight_quantizer(weight: Tensor, bits: int, *, symmetric: bool, axis: int = 0) -> Uniform:
    """Per-output-channel min-max quantizer of a weight whose output channels are `axis`."""
    channels = PerChannel(axis)
    rows = channels.rows(weight.detach())
    make = Uniform.symmetric if symmetric else Uniform.asymmetric
    return make(rows.amin(1), rows.amax(1), bits, channels)
