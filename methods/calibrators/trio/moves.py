"""Channels shifted and divided before they are rounded, and what makes up for it in the next layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.calibrators.trio.places import Place
from methods.core.graph.intercept import Transform
from methods.core.numerics.observers import Observer, Range
from methods.core.numerics.quantizers import Divided, Uniform

_QUANTILE = 0.99  # of the channels' sizes, which migration brings large ones down to


@dataclass(frozen=True)
class Move:
    """x -> (x - shift) / factor of maps (n, c, h, w); both are (c,), and one of them changes nothing."""

    shift: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The moved maps."""
        return (x - self.shift.view(-1, 1, 1)) / self.factor.view(-1, 1, 1)

    def quantizer(self, base: Uniform) -> Divided:
        """`base` on the moved maps."""
        whole = bool((self.factor == 1).all())
        factor = self.factor[:1] if whole else self.factor.view(-1, 1, 1)
        return Divided(base, factor, self.shift.view(-1, 1, 1) if whole else None)


def centring(low: Tensor, high: Tensor, *, printed: bool) -> Move:
    """Filter-wise shift of channels with the ends `low` and `high` (c,): each is centred at 0, or as printed."""
    return Move((high - low) / 2 if printed else (high + low) / 2, torch.ones_like(low))


def migration(high: Tensor, least: float, largest: float) -> Move:
    """Channel-wise migration of channels whose largest values are `high` (c,)."""
    whole = torch.maximum(torch.quantile(high, _QUANTILE), high.mean())
    ratio = high / whole if float(whole) > 0 else torch.ones_like(high)  # no channel has a positive value
    return Move(torch.zeros_like(high), ratio.clamp(least, largest))


@torch.no_grad()
def made_up_for(net: nn.Module, moves: Mapping[Place, Move]) -> nn.Module:
    """A copy of `net` whose convolutions take the moved maps: w' = w factor and b' = b + sum of w shift.

    A layer without a bias gets one, as a buffer: as a parameter it would count among those of the float network.
    """
    changed = copy.deepcopy(net)
    for place, move in moves.items():
        conv = changed.get_submodule(place.conv.module)
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.double()
        if place.shape == "depthwise":
            per_filter = move.factor.double().repeat_interleave(conv.out_channels // conv.in_channels)
            conv.weight.copy_(weight * per_filter.view(-1, 1, 1, 1))
            continue
        moved = weight[:, :, 0, 0] @ move.shift.double()
        if conv.bias is None:
            del conv.bias
            conv.register_buffer("bias", moved.to(conv.weight.dtype))
        else:
            conv.bias.copy_(conv.bias.double() + moved)
    return changed


class ChannelEnds:
    """Running extremes of each channel of maps (n, c, h, w)."""

    def __init__(self) -> None:
        self._ends: Range | None = None

    def update(self, x: Tensor) -> None:
        """Widen to the extremes of `x`."""
        rows = x.detach().transpose(0, 1).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        if self._ends is not None:
            low, high = torch.minimum(self._ends[0], low), torch.maximum(self._ends[1], high)
        self._ends = low, high

    def range(self, bits: int) -> Range:
        """The extremes, two vectors (c,)."""
        assert self._ends is not None
        return self._ends


@dataclass(frozen=True)
class Behind:
    """An observer of what `move` makes of a tensor."""

    move: Transform
    observer: Observer

    def update(self, x: Tensor) -> None:
        """See one batch."""
        self.observer.update(self.move(x))

    def range(self, bits: int) -> Range:
        """Ends of what it saw."""
        return self.observer.range(bits)
