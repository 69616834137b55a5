"""A quantized model beside the float one while images are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from methods.core.graph.intercept import Interceptor, OpKey, Transform, tap_transforms
from methods.core.quantized import Quantized


def tapped(
    quantized: Quantized,
    points: list[tuple[OpKey, int]],
    found: dict[tuple[OpKey, int], Tensor],
    *,
    gradient: bool,
) -> Callable[[Tensor], Any]:
    """A function that runs `quantized`, with or without a `gradient`, and leaves its tensors at `points` in `found`."""
    with_taps = {**tap_transforms(points, found)}
    for point, quantizer in (quantized.activations or {}).items():
        tap = with_taps.get(point)
        with_taps[point] = quantizer if tap is None else _both(quantizer, tap)

    def run(batch: Tensor) -> Any:
        with torch.set_grad_enabled(gradient), Interceptor(quantized.net, with_taps):
            return quantized.net(batch)

    return run


def _both(first: Transform, second: Transform) -> Transform:
    return lambda x: second(first(x))
