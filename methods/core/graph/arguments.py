"""What the arguments of a call of torch say of it. Axes count from the end."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import Tensor


def repeats_values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a resize only repeats values."""
    mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
    return name in {"interpolate", "upsample"} and mode in {"nearest", "nearest-exact"}


def adds_values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether padding adds values other than 0, which all known activation functions reach."""
    value = kwargs.get("value", args[-1] if len(args) > 2 else None)
    return name in {"pad", "constant_pad_nd"} and isinstance(value, (int, float)) and value != 0


def stacked_axis(one: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The new axis of a stack of tensors such as `one`."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    return int(axis) % (one.dim() + 1) - (one.dim() + 1)


def varying_axes(factor: Tensor) -> frozenset[int]:
    """The axes along which it has several values."""
    return frozenset(axis - factor.dim() for axis, size in enumerate(factor.shape) if size > 1)


def reduced_axes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[int]:
    """The axes that a sum, mean or average pooling runs over."""
    dims = args[0].dim()
    if name not in {"sum", "mean"}:  # avg_pool2d
        return frozenset(range(-int(name[-2]), 0))
    axes = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    axes = [axes] if isinstance(axes, Integral) else axes
    return frozenset(int(axis) % dims - dims for axis in axes or range(dims))
