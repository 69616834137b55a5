"""Microscaling: blocks of successive values that share a scale, which is a power of two.

By the OCP Microscaling Formats (MX) specification v1.0. A block's scale is 2^e, e = ⌊log2 max|x|⌋ - emax, where emax is
the exponent of the format's largest value; what lies beyond that value saturates, halves round to even.

Values of a format are unscaled here: those of E2M1 are 0, ±0.5 ... ±6; those of an integer of b bits k 2^-(b-2), |k| at
most 2^(b-1) - 1, which lie below 2. (-2, which two's complement has besides, is left out, as the specification allows.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from harness.api.formats import Format
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Stored

LEAST_SCALE, MOST_SCALE = -127, 127  # exponents that E8M0 has


@dataclass(frozen=True)
class Element:
    """What values a format has: m mantissa bits behind the leading one, steps of 2^(`least` - m) up to 2^`least` and
    twice as long in every octave from there, up to `largest`, whose exponent is `top`.
    """

    mantissa: int
    least: int
    top: int
    largest: float

    @classmethod
    @cache
    def of(cls, stored: Format) -> Element:
        """The values of a format of the kind int or float.

        E5M2 keeps its last exponent for infinity and NaN, as IEEE formats do, and E4M3 its last code for NaN. The
        others have neither.

        Raises:
            ValueError: a logarithmic format.
        """
        if stored.kind == "int":
            return cls(stored.bits - 2, 0, 0, 2.0 - 2.0 ** (2 - stored.bits))
        if stored.exponent is None:
            raise ValueError(f"{stored} has no values in octaves")
        exponent, mantissa = stored.exponent, stored.bits - 1 - stored.exponent
        bias = 2 ** (exponent - 1) - 1
        top = 2**exponent - 1 - bias
        steps = 2 ** (mantissa + 1) - 1  # of the largest value
        if (exponent, mantissa) == (5, 2):
            top -= 1
        elif (exponent, mantissa) == (4, 3):
            steps -= 1
        return cls(mantissa, 1 - bias, top, steps * 2.0 ** (top - mantissa))

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest values, of any shape."""
        if self.least == self.top:
            step: Tensor | float = 2.0 ** (self.top - self.mantissa)
        else:
            exponent = log2_floor(x).clamp_(self.least, self.top)
            step = power_of_two(exponent - self.mantissa, x)
        return (x / step).round_().mul_(step).clamp_(-self.largest, self.largest)


def log2_floor(x: Tensor) -> Tensor:
    """⌊log2 |x|⌋, exactly, int32; of 0 it is less than that of any other value."""
    exponent = torch.frexp(x).exponent - 1  # |x| = f 2^exponent with f in [1/2, 1)
    return exponent.masked_fill_(x == 0, -(2**15))


def power_of_two(exponent: Tensor, like: Tensor) -> Tensor:
    """2^exponent in the type of `like`, from its bits: functions of the power are not exact on every device."""
    bits = (exponent.long() + 1023) << 52
    values: Tensor = bits.view(torch.float64).to(like.dtype)
    return values


def shared_exponent(blocks: Tensor, element: Element) -> Tensor:
    """The scale's exponent of each block (..., values of a block), (..., 1)."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return (log2_floor(largest) - element.top).clamp_(LEAST_SCALE, MOST_SCALE)


def scaled(blocks: Tensor, exponent: Tensor, element: Element) -> Tensor:
    """`blocks` rounded to values of the format times 2^exponent, which broadcasts against them."""
    scale = power_of_two(exponent, blocks)
    return element.rounded(blocks / scale).mul_(scale)


def cut(x: Tensor, axis: int, size: int) -> Tensor:
    """Blocks of `size` values along `axis`, (..., blocks, size) with that axis last; the last one is filled with zeros,
    which change no scale. An axis that `x` does not have is its first.
    """
    moved = x.movedim(axis if -x.dim() <= axis < x.dim() else 0, -1)
    length = moved.shape[-1]
    if length < size:
        return moved.unsqueeze(-2)
    missing = -length % size
    whole: Tensor = torch.nn.functional.pad(moved, (0, missing)) if missing else moved
    return whole.reshape(*whole.shape[:-1], -1, size)


def joined(blocks: Tensor, x: Tensor, axis: int) -> Tensor:
    """`cut` undone: of the shape of `x`."""
    place = axis if -x.dim() <= axis < x.dim() else 0
    return blocks.flatten(-2)[..., : x.shape[place]].movedim(-1, place)


def blocks_of(x: Tensor, axis: int, size: int) -> int:
    """How many scales a tensor has in blocks along `axis`, the last one perhaps shorter."""
    length = x.shape[axis if -x.dim() <= axis < x.dim() else 0]
    return 0 if not length else x.numel() // length * -(-length // size)


@dataclass(frozen=True)
class Microscaled:
    """Quantizer of an activation in a microscaling format; every tensor has scales of its own.

    Attributes:
        stored: the format.
        axis: that the blocks lie along, counted from the end.
        scales: of the tensor that the site was seen with, for `stored_as`.
        scaled_values: the values of that tensor.
    """

    stored: Format
    axis: int
    scales: int
    scaled_values: int

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        return in_blocks(x, self.stored, self.axis)

    def stored_as(self, bits: int) -> Stored:
        """The format, and the bits of the scales of a tensor of `scaled_values` values."""
        return self.stored, self.stored.scale_bits(self.scales)

    @property
    def low(self) -> Tensor:
        """Nothing bounds a value, since its block's scale follows it."""
        return torch.tensor(-torch.inf)

    @property
    def high(self) -> Tensor:
        """See `low`."""
        return torch.tensor(torch.inf)


@dataclass(frozen=True)
class MicroscaledWeight:
    """Quantizer of a weight in a microscaling format: blocks of what an output channel sums over, in the order in which
    it lies in memory.

    Attributes:
        stored: the format.
        axis: of the output channels.
        scales: how many the weight has.
    """

    stored: Format
    axis: int
    scales: int

    @classmethod
    def of(cls, weight: Tensor, stored: Format, axis: int) -> MicroscaledWeight:
        """For a weight whose output channels are `axis`."""
        return cls(stored, axis, blocks_of(PerChannel(axis).rows(weight), -1, stored.group or 1))

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        channels = PerChannel(self.axis)
        return channels.whole(in_blocks(channels.rows(weight), self.stored, -1), weight)

    def stored_as(self, bits: int) -> Stored:
        """The format, and the bits of all scales."""
        return self.stored, self.stored.scale_bits(self.scales)


def in_blocks(x: Tensor, stored: Format, axis: int) -> Tensor:
    """`x` rounded to the format, whose blocks lie along `axis`."""
    element, blocks = Element.of(stored), cut(x.detach(), axis, stored.group or 1)
    return joined(scaled(blocks, shared_exponent(blocks, element), element), x, axis)


def foreign_blocks(blocks: Tensor, stored: Format) -> Tensor:
    """Which of (..., values of a block) hold other values than the format has under some scale, (...) bool.

    Under the scale of the rule above, or the next larger one: where the chosen scale was larger still, its values are
    among those that the latter gives.
    """
    element = Element.of(stored)
    exponent = shared_exponent(blocks, element)
    fits = [(scaled(blocks, (exponent + more).clamp_(max=MOST_SCALE), element) == blocks).all(-1) for more in (0, 1)]
    return ~(fits[0] | fits[1])
