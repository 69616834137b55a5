"""Quantizers and rounded weights as codes of at most eight bits, where they have such a form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.integers import LEVELS, dequantize, dequantize_channels, quantize
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Divided, Uniform

_TOP = LEVELS - 1


@dataclass(frozen=True)
class Step:
    """One step for a whole tensor: codes clip(⌊x / scale⌉, low, high) + zero_point in 0 .. 255."""

    scale: float
    zero_point: int
    low: int
    high: int

    @classmethod
    def between(cls, scale: float, low: int, high: int) -> Step | None:
        """The step of codes `low` .. `high`, less the zero point; None if they do not go into eight bits with 0."""
        zero_point = max(0, -low)
        return cls(scale, zero_point, low, high) if zero_point <= _TOP and high + zero_point <= _TOP else None

    def __call__(self, x: Tensor) -> Tensor:
        """`x` as codes, and back."""
        codes = quantize(x, self.scale, self.zero_point, self.low, self.high)
        values: Tensor = dequantize(codes, self.scale, self.zero_point)
        return values

    def late(self, x: Tensor) -> Tensor:
        """The same, but codes of all eight bits are clipped: runtimes make one product of integers of a product and a
        quantization that follows it at once. What takes the values as codes has to clip them itself.
        """
        codes = quantize(x, self.scale, self.zero_point, -self.zero_point, _TOP - self.zero_point)
        values: Tensor = dequantize(codes.clamp(max=self.high + self.zero_point), self.scale, self.zero_point)
        return values

    @property
    def few(self) -> bool:
        """Whether it has fewer codes than eight bits, of which 0 is the first."""
        return self.low == -self.zero_point and self.high < _TOP - self.zero_point

    def times(self, factor: float) -> Step:
        """The same codes for values that were multiplied by `factor` > 0."""
        scale = torch.tensor(self.scale) * factor
        return Step(float(scale), self.zero_point, self.low, self.high)


@dataclass(frozen=True)
class Indexed:
    """A step for each index of `axis`: `unit` codes of x / scale, whose products are scaled afterwards."""

    unit: Step
    scale: Tensor  # (indices,)
    axis: int


def uniform_step(quantizer: object) -> Step | Indexed | None:
    """Codes of an activation's quantizer; None if it is not uniform, or in other blocks than those of one axis."""
    if isinstance(quantizer, Divided):
        return uniform_step(quantizer.base)
    if not isinstance(quantizer, Uniform) or type(quantizer).__call__ is not Uniform.__call__:
        return None
    scale, zero = quantizer.scale.detach().float().cpu(), quantizer.zero_point.detach().cpu()
    if bool((zero != zero.flatten()[0]).any()):
        return None  # codes of several zero points have none in common
    offset = int(zero.flatten()[0])
    low, high = quantizer.qmin - offset, quantizer.qmax - offset
    if scale.numel() == 1:
        return Step.between(float(scale), low, high)
    if not isinstance(quantizer.granularity, PerChannel):
        return None
    unit = Step.between(1.0, low, high)
    return unit and Indexed(unit, scale, quantizer.granularity.axis)


def grid_of(quantizer: object) -> Uniform | None:
    """The grid that a weight lies on: the quantizer itself, or the one that a learned rounding keeps to."""
    grid = getattr(quantizer, "base", quantizer)
    return grid if isinstance(grid, Uniform) else None


@dataclass(frozen=True)
class StoredCodes:
    """A weight as codes, in its own shape, with a step and a zero point for each index of `axis`."""

    codes: Tensor  # int8
    scale: Tensor  # (channels,), float32
    zero_point: Tensor  # (channels,), in the type of the codes
    axis: int

    @property
    def bits(self) -> int:
        """4 where codes and zero points fit in four bits, else 8."""
        least, most = (-8, 7) if self.codes.dtype == torch.int8 else (0, 15)
        values = (self.codes, self.zero_point)
        return 4 if all(int(v.min()) >= least and int(v.max()) <= most for v in values) else 8

    def values(self) -> Tensor:
        """The weight."""
        values: Tensor = dequantize_channels(self.codes, self.scale, self.zero_point, self.axis)
        return values


def stored_codes(rounded: Tensor, grid: Uniform, axis: int) -> StoredCodes | None:
    """Codes of a weight that was rounded already, whatever way its codes were chosen.

    Args:
        rounded: the weight, on the grid.
        grid: its steps.
        axis: of its output channels.

    Returns:
        None if the steps are not the same along all other axes, codes do not go into eight bits with their zero point,
        or the weight is not on the grid.
    """
    rounded = rounded.detach().float().cpu()
    scale = grid.granularity.aligned(grid.scale.detach().float().cpu(), rounded.shape)
    rows = scale.expand(rounded.shape).movedim(axis, 0).flatten(1)
    if bool((rows != rows[:, :1]).any()):
        return None
    steps = rows[:, 0].contiguous()
    k = (rounded / scale).round_()
    if not torch.equal(k * scale, rounded):
        return None
    of_channel = k.movedim(axis, 0).flatten(1)
    low, high = of_channel.amin(1).clamp(max=0), of_channel.amax(1).clamp(min=0)
    if bool((high - low > _TOP).any()):
        return None
    half = LEVELS // 2
    if bool((grid.zero_point == 0).all()) and grid.qmin < 0 and bool((low >= -half).all() & (high < half).all()):
        return StoredCodes(k.to(torch.int8), steps, torch.zeros(len(steps), dtype=torch.int8), axis)
    # The zero is not the grid's own, which need not be a code; so as few bits as can be. Codes are signed, since
    # processors multiply eight bits without a sign by eight with one: two factors without cost twice the time.
    zero = -low
    codes = (k.movedim(axis, -1) + zero).movedim(-1, axis)
    middle = 8 if int((high - low).max()) < 16 else half
    return StoredCodes((codes - middle).to(torch.int8), steps, (zero - middle).to(torch.int8), axis)
