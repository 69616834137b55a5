"""SmoothQuant's migration: a LayerNorm's channels are divided by what the weights behind them are multiplied by."""

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

_SMALLEST = 1e-5  # of a channel's largest value: one that is always 0 stays as it is


@torch.no_grad()
def migrated(model: VisionModel, graph: Trace, images: Tensor, alpha: float, batch: int) -> tuple[nn.Module, int]:
    """A copy of the network that computes what it did, and at how many LayerNorms it differs.

    Channel c of a LayerNorm's output is divided by s_c = max|x_c|^alpha / max|W_c|^(1 - alpha), where W are all weights
    that take it (Xiao et al., SmoothQuant, ICML 2023, eq. 4). Only LayerNorms that feed plain linear layers alone are
    changed (`find_pairs`).

    Args:
        model: whose network it is, which is not changed.
        graph: its trace.
        images: calibration images (n, c, h, w).
        alpha: 0 to 1; how much of the activations' spread goes into the weights.
        batch: images at once.
    """
    net = model.net
    ends = {pair: ChannelEnds(-1) for pair in find_pairs(net, graph, images[:1])}
    watch(model.net, images, {(pair.norm, OUTPUT): each.update for pair, each in ends.items()}, batch)
    found = copy.deepcopy(net)
    for pair, each in ends.items():
        low, high = each.range(0)
        values = torch.maximum(-low, high).double().clamp(min=_SMALLEST)
        linears = [net.get_submodule(key.module).get_parameter("weight") for key in pair.linears]
        weights = torch.stack([weight.abs().amax(0) for weight in linears]).amax(0).double().clamp(min=_SMALLEST)
        scale = values.pow(alpha) / weights.pow(1.0 - alpha)
        put(found, moved(net, pair, scale, torch.zeros_like(scale)))
    return found, len(ends)
