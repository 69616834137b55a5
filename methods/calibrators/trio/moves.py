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
from methods.core.reparameterization.fold import add_to_bias

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
    """A copy of `net` whose convolutions take the moved maps: w' = w factor and b' = b + sum of w shift."""
    changed = copy.deepcopy(net)
    for place, move in moves.items():
        conv = changed.get_submodule(place.conv.module)
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.double()
        if place.shape == "depthwise":
            per_filter = move.factor.double().repeat_interleave(conv.out_channels // conv.in_channels)
            conv.weight.copy_(weight * per_filter.view(-1, 1, 1, 1))
            continue
        add_to_bias(changed, place.conv.module, weight[:, :, 0, 0] @ move.shift.double())
    return changed


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
