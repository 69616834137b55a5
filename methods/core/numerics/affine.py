"""Affine quantization: the one place where values are rounded to codes of an even grid, and back.

A quantizer has a step s, a zero point z and codes qmin .. qmax. Codes are counted from the zero point here, so that

    k = clip(⌊x / s⌉, qmin - z, qmax - z),    x̂ = s k

and the code proper is k + z. Where z is an integer this is s (clip(⌊x / s⌉ + z, qmin, qmax) - z); halves round to even
before the zero point: x / s = 0.5 gives code z, also where z is odd.

Scales and ends are numbers or tensors that broadcast against x; `granularity` brings a quantizer's parameters into such
shapes. No function has a gradient of its own; `straight_through` has.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

# Below this a range is a point: the tensor is constant and any positive step represents it.
SMALLEST = 1e-8

End = TypeVar("End", Tensor, float)  # smallest or largest k


def to_codes_(ratio: Tensor, low: End | None, high: End | None) -> Tensor:
    """clip(⌊ratio⌉, low, high) in place; halves to even. It serves codes of logarithms as well; None: no end."""
    return ratio.round_().clamp_(low, high)


def quantize(x: Tensor, scale: Tensor, low: End, high: End) -> Tensor:
    """Codes k of `x`, less the zero point and in the type of x / scale."""
    return to_codes_(x / scale, low, high)


def dequantize(codes: Tensor, scale: Tensor, low: End, high: End) -> Tensor:
    """Values s clip(k, low, high) of codes less the zero point, which need be no integers while they are learned."""
    return codes.clamp(low, high) * scale


def fake_quantize(x: Tensor, scale: Tensor, low: End, high: End) -> Tensor:
    """x̂: quantized and dequantized. The ends as numbers are twice as fast as tensors."""
    return quantize(x, scale, low, high).mul_(scale)


def fake_quantize_(x: Tensor, scale: Tensor, low: End, high: End) -> Tensor:
    """`fake_quantize` in place; scale and ends must not be larger than `x`."""
    return to_codes_(x.div_(scale), low, high).mul_(scale)


def parameters(low: Tensor, high: Tensor, top: int, least: Tensor | float) -> tuple[Tensor, Tensor]:
    """Step and zero point of codes 0 .. top whose ends are `low` and `high`: (high - low) / top and ⌊-low / step⌉.

    Args:
        low: lower ends.
        high: upper ends, of the same shape.
        top: the last code.
        least: the step is at least this.

    Returns:
        Steps and zero points, which are whole numbers in floating point and outside the codes where a range lies to one
        side of 0.
    """
    scale = ((high - low) / top).clamp(min=least)
    return scale, (-low / scale).round()


def asymmetric_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`parameters` of 2^bits codes for ranges that are widened to contain 0, which makes the zero point a code."""
    top = 2**bits - 1
    scale, zero = parameters(low.clamp(max=0.0), high.clamp(min=0.0), top, SMALLEST)
    return scale, zero.clamp(0, top)


def symmetric_step(magnitude: Tensor, bits: int) -> Tensor:
    """Step of codes -2^(bits-1) .. 2^(bits-1) - 1 for values up to `magnitude`, which is divided by half an odd number:
    127.5 for 8 bits.
    """
    top: int = 2**bits - 1
    return (magnitude / (top / 2)).clamp(min=SMALLEST)
