"""SQ-b: the channels behind a LayerNorm are centred and scaled, and the layers behind it undo that."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from methods.core.calibrate import watch
from methods.core.graph.intercept import OUTPUT
from methods.core.graph.trace import Trace
from methods.core.numerics.observers import ChannelEnds
from methods.core.reparameterization.fold import find_pairs, moved, put

_LEAST = 1e-5  # of a range, relative to the widest: a constant channel would be enlarged without end


def smoothed(model: VisionModel, graph: Trace, images: Tensor, alpha: float, batch: int) -> nn.Module:
    """A copy of the float network that is the same function, with smoothed channels behind its LayerNorms."""
    pairs = find_pairs(model.net, graph, images[:1])
    ends = {pair: ChannelEnds(-1) for pair in pairs}
    watch(model.net, images, {(pair.norm, OUTPUT): each.update for pair, each in ends.items()}, batch)
    net = copy.deepcopy(model.net)
    for pair, each in ends.items():
        weight = torch.cat([model.net.get_parameter(f"{key.module}.weight") for key in pair.linears])
        put(net, moved(model.net, pair, *scale_and_shift(*each.range(0), weight, alpha)))
    return net


def scale_and_shift(low: Tensor, high: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """What x' = (x - z) / s has by channel, s and -z, in double precision: z = (high + low) / 2 and
    s = (half the range)^alpha / (largest weight)^(1 - alpha).

    Args:
        low: (c,) least values.
        high: (c,) greatest values.
        weight: (o, c) of all layers that take the channels.
        alpha: share of the activations.
    """
    low, high = low.double(), high.double()
    half, largest = (high - low) / 2, weight.detach().abs().amax(0).double()

    def positive(x: Tensor) -> Tensor:
        return x.clamp(min=float(x.max()) * _LEAST or 1.0)

    return positive(half) ** alpha / positive(largest) ** (1 - alpha), -(high + low) / 2
