"""MicroScopiQ's weights: integers in macro-blocks, and in each micro-block outliers of twice the bits.

A macro-block of 128 weights of an output channel has one power-of-two scale for its inliers, integers of b bits. In
each micro-block of 8 an outlier's second half of bits takes the place of an inlier, which is pruned to 0. Outliers of a
micro-block share an exponent, and are ±(1 + k / 2^m) 2^e: a sign and m mantissa bits each, m = 2 for b = 2 and 4 for 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.api.contracts import Grid
from harness.api.formats import Format
from methods.core.numerics.microscaling import (
    LEAST_SCALE,
    MOST_SCALE,
    Element,
    log2_floor,
    power_of_two,
    scaled,
    shared_exponent,
)
from methods.core.numerics.quantizers import Stored

MANTISSA: Mapping[int, int] = {2: 2, 4: 4}  # bits of a weight -> mantissa bits of an outlier (e1m2, e3m4)
SCALE_BITS = 8  # of a micro-block's outliers, their common exponent included


@dataclass(frozen=True)
class Layout:
    """How weights are cut, and what is an outlier: what lies farther from its macro-block's mean than `sigmas` times
    the standard deviation.
    """

    bits: int
    macro: int
    micro: int
    sigmas: float

    @property
    def inliers(self) -> Format:
        """The format of inliers."""
        return Format(self.bits, "int", "group", self.macro, "e8m0")

    @property
    def outlier_bits(self) -> int:
        """What a micro-block with outliers keeps beside its values: scale, and the places of both halves of as many
        outliers as it may have.
        """
        return SCALE_BITS + self.micro // 2 * 2 * (self.micro - 1).bit_length()


@dataclass
class MicroBlocks:
    """Rounds columns so (`methods.core.compensation.columns.Rounder`), all output channels at once."""

    layout: Layout
    size: int = field(init=False)
    micro_blocks: int = 0  # that were rounded
    with_outliers: int = 0  # of them
    outliers: int = 0
    values: int = 0

    def __post_init__(self) -> None:
        self.size = self.layout.macro
        self._element = Element.of(self.layout.inliers)
        self._mantissa = MANTISSA[self.layout.bits]

    def start(self, columns: slice, weight: Tensor, inverse: Tensor) -> None:
        """Find a macro-block's outliers, and the scale of its inliers."""
        self._inverse, self._weight = inverse, weight  # a view: what is left of it changes column by column
        far = weight - weight.mean(1, keepdim=True)
        far = far.abs() > self.layout.sigmas * weight.std(1, correction=0, keepdim=True)
        self._outlying = self._fewest(weight, far)
        inliers = weight.masked_fill(self._outlying, 0.0)
        self._exponent = shared_exponent(inliers, self._element)

    def column(self, number: int, values: Tensor) -> Tensor:
        """See `Rounder`."""
        place = number % self.layout.micro
        if place == 0:
            self._start_micro(number)
        inlier = scaled(values[:, None], self._exponent, self._element)[:, 0]
        inlier = inlier.masked_fill(self._pruned[:, place], 0.0)
        return torch.where(self._outlying[:, number], self._outlier(values), inlier)

    def _fewest(self, weight: Tensor, far: Tensor) -> Tensor:
        """Of outliers `far` (out, columns) the largest half of each micro-block at most."""
        kept = torch.zeros_like(far)
        for begin in range(0, weight.shape[1], self.layout.micro):
            part = slice(begin, begin + self.layout.micro)
            sizes = weight[:, part].abs().masked_fill(~far[:, part], -1.0)
            room = sizes.shape[1] // 2
            if room:
                chosen = sizes.topk(room, dim=1).indices
                kept[:, part] = torch.zeros_like(far[:, part]).scatter_(1, chosen, True) & far[:, part]
        return kept

    def _start_micro(self, begin: int) -> None:
        """Find a micro-block's pruned weights, those of least w² / [H⁻¹], and the exponent of its outliers."""
        part = slice(begin, begin + self.layout.micro)
        weight, outlying = self._weight[:, part], self._outlying[:, part]
        count = outlying.sum(1, keepdim=True)
        saliency = (weight.square() / self._inverse[part]).masked_fill(outlying, torch.inf)
        self._pruned = saliency.argsort(dim=1, stable=True).argsort(dim=1, stable=True) < count
        largest = weight.abs().masked_fill(~outlying, 0.0).amax(1)
        self._outlier_exponent = log2_floor(largest).clamp_(LEAST_SCALE, MOST_SCALE)
        self.micro_blocks += len(weight)
        self.with_outliers += int((count > 0).sum())
        self.outliers += int(count.sum())
        self.values += weight.numel()

    def _outlier(self, values: Tensor) -> Tensor:
        scale, steps = power_of_two(self._outlier_exponent, values), 2.0**self._mantissa
        mantissa = ((values.abs() / scale - 1.0) * steps).round_().clamp_(0.0, steps - 1.0)
        return torch.where(values < 0, -scale, scale) * (1.0 + mantissa / steps)


@dataclass(frozen=True)
class WithOutliers:
    """A weight's quantizer that gives the values that were found once.

    Attributes:
        layout: how they are cut.
        values: of the weight's shape.
        scale_bits: all that is kept beside the values.
    """

    layout: Layout
    values: Tensor
    scale_bits: int

    @classmethod
    def of(cls, rounder: MicroBlocks, values: Tensor, channels: int, length: int) -> WithOutliers:
        """What `rounder` made of a weight of so many output `channels`, each of `length` weights.

        Beside the values there are the scales of macro-blocks, a bit of every micro-block that tells whether it has
        outliers, and what those need.
        """
        layout = rounder.layout
        scales = layout.inliers.scale_bits(channels * -(-length // layout.macro))
        bits = scales + rounder.micro_blocks + rounder.with_outliers * layout.outlier_bits
        return cls(layout, values, bits)

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return self.values.to(weight)

    def stored_as(self, bits: int) -> Stored:
        """The inliers' format; what outliers need beside their places is counted with the scales."""
        return self.layout.inliers, self.scale_bits

    @property
    def grid(self) -> Grid:
        """Of what the audit has to know."""
        return Grid(group=self.layout.macro, outliers=self.layout.micro)
