"""Where learning starts: the grid of each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Uniform, weight_quantizer

_SHRUNK = 80  # candidates: both ends times 1 - 0.01 i


@torch.no_grad()
def least_error_quantizer(weight: Tensor, bits: int, *, symmetric: bool, norm: float, axis: int = 0) -> Uniform:
    """Per-output-channel quantizer of a weight, its channels along `axis`, whose range is the min-max range times the
    factor of 1, 0.99, ... 0.21 that gives the channel's least Σ |Ŵ - W|^norm (BRECQ: norm 2.4).
    """
    channels, rows = PerChannel(axis), PerChannel(0)
    flat = channels.rows(weight.detach())
    make = Uniform.symmetric if symmetric else Uniform.asymmetric
    low, high = flat.amin(1), flat.amax(1)
    best = torch.full_like(low, torch.inf)
    factor = torch.ones_like(low)
    for i in range(_SHRUNK):
        shrink = 1.0 - 0.01 * i
        error = (make(low * shrink, high * shrink, bits, rows)(flat) - flat).abs_().pow_(norm).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        factor = torch.where(better, torch.full_like(factor, shrink), factor)
    return make(low * factor, high * factor, bits, channels)


def start(weight: Tensor, bits: int, *, symmetric: bool, ranges: str, norm: float, axis: int = 0) -> Uniform:
    """The grid of one weight, its output channels along `axis`; `ranges` is `minmax` or `error`."""
    if ranges == "minmax":
        return weight_quantizer(weight, bits, symmetric=symmetric, axis=axis)
    return least_error_quantizer(weight, bits, symmetric=symmetric, norm=norm, axis=axis)
