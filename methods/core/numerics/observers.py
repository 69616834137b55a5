"""Observers: from the values that pass a site in float to the range that its quantizer will cover.

Each sees the site's tensor batch by batch in one forward pass of the float model and keeps only a few numbers or a
histogram, so memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from methods.core.numerics.affine import asymmetric_parameters, to_codes_
from methods.core.numerics.percentile import ends

Range = tuple[Tensor, Tensor]


class Observer(Protocol):
    """Collects values of one site."""

    def update(self, x: Tensor) -> None:
        """See one batch."""

    def range(self, bits: int) -> Range:
        """Low and high end, two scalars."""


class MinMax:
    """Running extremes (FQ-ViT's and PSAQ-ViT's default)."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Widen to the extremes of `x`."""
        low, high = torch.aminmax(x)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def range(self, bits: int) -> Range:
        """The extremes."""
        assert self._low is not None
        assert self._high is not None
        return self._low, self._high


class ChannelEnds:
    """Running extremes of each channel, which lie along `axis`."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._ends: Range | None = None

    def update(self, x: Tensor) -> None:
        """Widen to the extremes of `x`."""
        rows = x.detach().movedim(self._axis, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        if self._ends is not None:
            low, high = torch.minimum(self._ends[0], low), torch.maximum(self._ends[1], high)
        self._ends = low, high

    def range(self, bits: int) -> Range:
        """The extremes, two vectors (channels,)."""
        assert self._ends is not None
        return self._ends


class Ema:
    """Exponential moving average of batch ranges: first batch, then m <- m + momentum * (current - m) (FQ-ViT).

    `quantile` below 1 takes each batch's upper and lower quantile instead of its extremes (FQ-ViT's percentile
    observer, with quantile 0.99999).
    """

    def __init__(self, momentum: float, quantile: float = 1.0) -> None:
        self._momentum = momentum
        self._quantile = quantile
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Fold in one batch."""
        low, high = torch.aminmax(x) if self._quantile >= 1.0 else quantiles(x, self._quantile)
        self._low = low if self._low is None else torch.lerp(self._low, low, self._momentum)
        self._high = high if self._high is None else torch.lerp(self._high, high, self._momentum)

    def range(self, bits: int) -> Range:
        """The averaged ends."""
        assert self._low is not None
        assert self._high is not None
        return self._low, self._high


def quantiles(x: Tensor, q: float) -> Range:
    """The (1 - q)- and q-quantile of all values of `x`, interpolated linearly."""
    low, high = ends(x.detach().reshape(1, -1), [q])
    return low[0, 0], high[0, 0]


class Omse:
    """Range of least mean squared quantization error among shrunken min-max ranges (FQ-ViT's OMSE observer).

    Candidates shrink both ends together by 1 - 0.01 i, i = 0 .. 89. The error is measured on a histogram of all
    batches (FQ-ViT: on the raw values of the last batch only), with the asymmetric quantizer.
    """

    _BINS = 4096
    _STEPS = 90

    def __init__(self) -> None:
        self._extremes = MinMax()
        self._counts: Tensor | None = None
        self._edges: Range | None = None

    def update(self, x: Tensor) -> None:
        """Add to the histogram, re-binning what is there when the range grows."""
        self._extremes.update(x)
        low, high = self._extremes.range(0)
        high = torch.maximum(high, low + 1e-6)
        counts = _histogram(x.detach().flatten(), None, low, high, self._BINS)
        if self._counts is not None and self._edges is not None:
            counts += _histogram(_centres(*self._edges, self._BINS), self._counts, low, high, self._BINS)
        self._counts, self._edges = counts, (low, high)

    def range(self, bits: int) -> Range:
        """The candidate with the least error at `bits`."""
        assert self._counts is not None
        assert self._edges is not None
        low, high = self._edges
        x = _centres(low, high, self._BINS)
        shrink = 1.0 - 0.01 * torch.arange(self._STEPS, device=x.device, dtype=x.dtype)
        scale, zero = (each[:, None] for each in asymmetric_parameters(low * shrink, high * shrink, bits))
        rounded = (to_codes_(x / scale + zero, 0, 2**bits - 1) - zero) * scale
        best = ((rounded - x).square() * self._counts).sum(1).argmin()
        return low * shrink[best], high * shrink[best]


# What methods offer as a choice of activation ranges; the percentile and its momentum are FQ-ViT's.
OBSERVERS: Mapping[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "percentile": lambda: Ema(0.01, 0.99999),
    "omse": Omse,
}


def _centres(low: Tensor, high: Tensor, bins: int) -> Tensor:
    return low + (high - low) * (torch.arange(bins, device=low.device, dtype=low.dtype) + 0.5) / bins


def _histogram(x: Tensor, weights: Tensor | None, low: Tensor, high: Tensor, bins: int) -> Tensor:
    index = ((x - low) / (high - low) * bins).long().clamp_(0, bins - 1)
    # bincount with weights adds floats in an order of its own on GPUs; counts are exact, so are integer-valued doubles.
    return torch.bincount(index, weights=None if weights is None else weights.double(), minlength=bins).double()
