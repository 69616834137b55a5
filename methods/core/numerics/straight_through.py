"""Rounding that gradients pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.core.numerics.quantizers import Uniform


class StraightThrough(torch.autograd.Function):
    """x̂ = s clip(⌊x/s⌉, l, h), with the straight-through gradients of LSQ (Esser et al., ICLR 2020, eq. 3).

    dx̂/dx is 1 inside the range and 0 outside; dx̂/ds is ⌊x/s⌉ - x/s inside, and l or h outside. LSQ's factor on the
    scale's gradient is left out: Adam would divide it out again. Codes are those of `Uniform`, less the zero point.
    Scale and ends are numbers or tensors that broadcast against x; only a scalar scale has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
        """Quantize and dequantize `x`."""
        ctx.save_for_backward(x, scale)
        ctx.ends = low, high
        return x.div(scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of x and scale."""
        (grad,) = grads
        x, scale = ctx.saved_tensors
        ratio = x / scale
        rounded = ratio.round()
        codes = rounded.clamp(*ctx.ends)
        inside = grad * (codes == rounded)
        slope = None
        if ctx.needs_input_grad[1]:
            slope = (grad * codes).sum() - (inside * ratio).sum()
        return inside if ctx.needs_input_grad[0] else None, slope, None, None


def straight_through(x: Tensor, quantizer: Uniform) -> Tensor:
    """`quantizer` of `x` with a gradient in `x` alone; unlike torch's fake quantization it takes zero points that are
    no code themselves.
    """
    shape = [-1 if i == quantizer.axis else 1 for i in range(x.dim())] if quantizer.axis is not None else []
    scale, zero = quantizer.scale.view(shape), quantizer.zero_point.view(shape)
    rounded: Tensor = StraightThrough.apply(x, scale, quantizer.qmin - zero, quantizer.qmax - zero)
    return rounded
