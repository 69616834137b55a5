"""Operators that say where a network computes with integers, for models that are written as files (`Deployable`).

Between `quantize` and `dequantize` a tensor is codes of eight bits. In torch both are plain arithmetic, the same as
that of fake quantization; whoever writes a file gives them the format's own operations, so that the product of two
dequantized tensors can become one product of integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMESPACE = "dfqbench"
LEVELS = 256  # codes of eight bits


@torch.library.custom_op(f"{NAMESPACE}::quantize", mutates_args=())
def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Codes clip(⌊x / scale⌉, low, high) + zero_point of `x`, uint8; halves to even.

    Args:
        x: values, float32.
        scale: the step, a float32 number.
        zero_point: code of 0, in 0 .. 255.
        low: smallest code less the zero point, at least -zero_point.
        high: largest code less the zero point, at most 255 - zero_point.
    """
    return (x / _number(scale, x)).round_().clamp_(low, high).add_(zero_point).to(torch.uint8)


@quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@torch.library.custom_op(f"{NAMESPACE}::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """Values scale * (codes - zero_point), float32, of codes (uint8)."""
    return codes.to(torch.float32).sub_(zero_point).mul_(_number(scale, codes))


@dequantize.register_fake
def _(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op(f"{NAMESPACE}::dequantize_channels", mutates_args=())
def dequantize_channels(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """Values of a weight's codes (uint8 or int8) with a step and a zero point for each index of `axis`, float32.

    Args:
        codes: of any shape.
        scale: (channels,), float32.
        zero_point: (channels,), in the type of the codes.
        axis: of the channels, counted from the front.
    """
    shape = [-1 if i == axis else 1 for i in range(codes.dim())]
    centred = codes.to(torch.float32).sub_(zero_point.to(torch.float32).view(shape))
    return centred.mul_(scale.view(shape))


@dequantize_channels.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


def _number(scale: float, like: Tensor) -> Tensor:
    """As a float32 tensor: a number would be rounded otherwise on some devices."""
    return torch.tensor(scale, dtype=torch.float32, device=like.device)
