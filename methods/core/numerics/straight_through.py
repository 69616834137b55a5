"""Rounding that gradients pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.core.numerics.affine import fake_quantize


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
        return fake_quantize(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of x and scale."""
        (grad,) = grads
        x, scale = ctx.saved_tensors
        ratio = x / scale
        rounded = ratio.round()
        codes = rounded.clamp(*ctx.ends)
        # Half the time of a product with booleans. The sums run in the order in which `grad` lies in memory.
        inside = grad * torch.eq(codes, rounded, out=rounded)
        slope = None
        if ctx.needs_input_grad[1]:
            slope = (grad * codes).sum() - (inside * ratio).sum()
        return inside if ctx.needs_input_grad[0] else None, slope, None, None
