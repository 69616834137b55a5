"""The quantizer of tokens: a step for every position, and outlier channels in more bits, found as values come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.formats import Format
from methods.calibrators.ouromamba.scales import far, largest_code
from methods.core.numerics.affine import SMALLEST, fake_quantize
from methods.core.numerics.quantizers import Stored


@dataclass(frozen=True)
class Tokens:
    """Quantizer of (n, tokens, channels).

    Tokens are handled in groups of `refresh`, one after the other. Where the largest value of a token, listed channels
    left out, is above its position's range, the channels that stick out (`scales.far`) join the group's list. Listed
    channels have `outlier_bits` from there on, with one step for each image, group and channel; all other values are
    clipped to their position's range. Everything is decided image by image.

    Args:
        scale: (tokens,).
        bits: of a value.
        outlier_bits: of a value in a listed channel.
        refresh: tokens after which the list is emptied.
        deviations: standard deviations above the mean at which a channel sticks out.
        counted: on the calibration images, once that is known: all values, those in listed channels, and their steps.
    """

    scale: Tensor
    bits: int
    outlier_bits: int
    refresh: int
    deviations: float
    counted: tuple[int, int, int] | None = None

    def stored_as(self, bits: int) -> Stored | None:
        """Values of `bits` bits, and what outlier channels take beyond that: wider values, and steps of their own."""
        _, listed, steps = self.counted or (0, 0, 0)
        found = Format(bits, granularity="channel")
        return found, (self.outlier_bits - bits) * listed + found.scale_bits(steps)

    @property
    def scaled_values(self) -> int:
        """The number of values that take so much more."""
        return 0 if self.counted is None else self.counted[0]

    @property
    def dynamic(self) -> str:
        """That it looks at values first."""
        return f"channels that stick out in an image have {self.outlier_bits} bits there instead of {self.bits}"

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        return self.with_steps(x, self.scale)

    def with_steps(self, x: Tensor, scale: Tensor) -> Tensor:
        """The same with other steps (tokens,), with a gradient in them and, straight through, in `x`."""
        top = largest_code(self.bits)
        with torch.no_grad():
            listed = self.listed(x)
            kept = self._kept(x, listed)
        if not torch.is_grad_enabled():
            return torch.where(listed, kept, fake_quantize(x, scale[:, None], -top, top))
        return torch.where(listed, x + (kept - x).detach(), rounded(x, scale[:, None], top))

    @torch.no_grad()
    def count(self, x: Tensor) -> tuple[int, int, int]:
        """See `counted`, of `x`."""
        listed = self.listed(x)
        return x.numel(), int(listed.sum()), int(self._grouped(listed).any(2).sum())

    @torch.no_grad()
    def listed(self, x: Tensor) -> Tensor:
        """Which values of `x` lie in a channel that is listed by then: booleans like `x`."""
        size = self._grouped(x.abs())
        out = self._grouped(far(x, self.deviations))
        limit = self._grouped((largest_code(self.bits) * self.scale)[None, :, None])[..., 0]
        listed = torch.zeros_like(out[:, :, 0])
        found = []
        for place in range(self.refresh):
            exceeds = size[:, :, place].masked_fill(listed, 0).amax(-1) > limit[:, :, place]
            listed = listed | (exceeds[..., None] & out[:, :, place])
            found.append(listed)
        every: Tensor = torch.stack(found, 2).flatten(1, 2)
        return every[:, : x.shape[1]]

    def _kept(self, x: Tensor, listed: Tensor) -> Tensor:
        top = largest_code(self.outlier_bits)
        largest = self._grouped((x * listed).abs()).amax(2)
        step = (largest / top).clamp(min=SMALLEST).repeat_interleave(self.refresh, 1)[:, : x.shape[1]]
        return fake_quantize(x, step, -top, top)

    def _grouped(self, x: Tensor) -> Tensor:
        """(n, tokens, channels) as (n, groups, refresh, channels); what is left over is padded with zeros."""
        padded: Tensor = functional.pad(x, (0, 0, 0, -x.shape[1] % self.refresh)).unflatten(1, (-1, self.refresh))
        return padded

    @property
    def low(self) -> Tensor:
        """Smallest value of a channel that is not listed, at some position."""
        return -self.high

    @property
    def high(self) -> Tensor:
        """Largest such value."""
        return largest_code(self.bits) * self.scale.max()


def rounded(x: Tensor, step: Tensor, top: int) -> Tensor:
    """`x` on codes -top .. top, differentiable in `x` (1 within the range) and in `step` (as LSQ)."""
    codes = (x / step).clamp(-top, top)
    return (codes + (codes.round() - codes).detach()) * step
