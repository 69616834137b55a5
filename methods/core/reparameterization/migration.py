"""SmoothQuant's migration: a LayerNorm's channels are divided by what the weights behind them are multiplied by."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.api.images import ImageSet
from methods.core.graph.intercept import OUTPUT, Interceptor, Transform
from methods.core.graph.trace import Trace
from methods.core.reparameterization.fold import find_pairs, fold

_SMALLEST = 1e-5  # of a channel's largest value: one that is always 0 stays as it is


@dataclass(frozen=True)
class _Scaled:
    """As much of a quantizer as folding needs: a scale, or one for each channel, and no shift."""

    scale: Tensor

    @property
    def zero_point(self) -> Tensor:
        """0 everywhere."""
        return torch.zeros_like(self.scale)


@torch.no_grad()
def migrated(net: nn.Module, graph: Trace, images: Tensor, alpha: float, batch: int) -> tuple[nn.Module, int]:
    """A copy of `net` that computes what it did, and at how many LayerNorms it differs.

    Channel c of a LayerNorm's output is divided by s_c = max|x_c|^alpha / max|W_c|^(1 - alpha), where W are all weights
    that take it (Xiao et al., SmoothQuant, ICML 2023, eq. 4). Only LayerNorms that feed plain linear layers alone are
    changed (`find_pairs`).

    Args:
        net: the network, not changed.
        graph: its trace.
        images: calibration images (n, c, h, w).
        alpha: 0 to 1; how much of the activations' spread goes into the weights.
        batch: images at once.
    """
    pairs = find_pairs(net, graph, images[:1])
    largest: dict[object, Tensor] = {}

    def watch(key: object) -> Transform:
        def transform(x: Tensor) -> Tensor:
            found = x.abs().flatten(0, -2).amax(0)
            largest[key] = torch.maximum(largest[key], found) if key in largest else found
            return x

        return transform

    with Interceptor(net, {(pair.norm, OUTPUT): watch(pair.norm) for pair in pairs}):
        for part in ImageSet.whole(images).batches(batch):
            part.through(net)
    found = copy.deepcopy(net)
    for pair in pairs:
        values = largest[pair.norm].double().clamp(min=_SMALLEST)
        linears = [net.get_submodule(key.module).get_parameter("weight") for key in pair.linears]
        weights = torch.stack([weight.abs().amax(0) for weight in linears]).amax(0).double().clamp(min=_SMALLEST)
        scale = values.pow(alpha) / weights.pow(1.0 - alpha)
        fold(found, pair, _Scaled(scale), _Scaled(scale.new_ones(())))
    return found, len(pairs)
