"""NormQuant: how the channels of a layer's input are scaled, between the ranges of activations and of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.core.numerics.quantizers import Uniform

_LEAST = 1e-3  # of a weight's mean step: a channel that no output uses would be scaled without end


def weight_steps(weights: list[Tensor]) -> Tensor:
    """(c,) largest magnitude of each input channel over all `weights` (o, c), by its mean, in double precision."""
    largest = torch.cat(weights).detach().abs().amax(0).double()
    mean = largest.mean()
    return (largest / mean).clamp(min=_LEAST) if bool(mean > 0) else torch.ones_like(largest)


def behind_norm(channels: Uniform, steps: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Ratio and shift of x' = (x + shift) / ratio, both (c,) in double precision.

    ratio = (s / mean s)^(1 - alpha) / w^alpha, and the shift gives every channel the same least value -z' mean s, with
    z' the mean zero point. With alpha = 0 it is RepQ-ViT's reparameterisation.

    Args:
        channels: quantizer of x by channel, of s and z.
        steps: w, the weights' steps by their mean, (c,).
        alpha: share of the weights.
    """
    scale, zero = channels.scale.double(), channels.zero_point.double()
    common = scale.mean()
    ratio = (scale / common) ** (1 - alpha) / steps**alpha
    least = -(zero.mean().clamp(0, channels.qmax).round()) * common
    return ratio, ratio * least + zero * scale


def without_norm(largest: Tensor, steps: Tensor, alpha: float) -> Tensor:
    """The ratio (c,), at least 1, for an input that nothing before can be folded into: (m / mean)^(1 - alpha) / w^alpha
    with m = max(`largest`, mean of `largest`), both (c,).
    """
    mean = largest.double().mean()
    if not bool(mean > 0):
        return torch.ones_like(steps)
    share = largest.double().clamp(min=float(mean)) / mean
    return (share ** (1 - alpha) / steps**alpha).clamp(min=1.0)
