"""Learned scales of activations, and QDrop's random dropping of their quantization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.core.graph.intercept import Transform
from methods.core.graph.sites import Point
from methods.core.numerics.quantizers import Uniform
from methods.core.numerics.straight_through import StraightThrough

_SMALLEST = 1e-8


def mixed(first: Tensor, second: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each value from `second` with probability `share`, else from `first`; `generator` is on their device."""
    drawn = torch.rand(first.shape, generator=generator, device=first.device)
    chosen = torch.lt(drawn, share, out=drawn)
    # Weights 0 and 1 choose exactly. On a CPU torch.where takes ten times as long, and its gradient as well.
    return torch.lerp(first, second, chosen.to(first.dtype))


class Scales:
    """Activation quantizers of one unit while it is learned.

    All scales are one vector, so that an optimiser step costs the same for any number of sites. `renew` must be called
    before each forward pass. Quantizers other than per-tensor uniform ones are not for here: they have no such scale.

    Args:
        start: quantizer of each site.
        relative: whether `values` are the scales divided by their start, or the scales.
        drop: share of values that pass in float.
        generator: for dropping, on the activations' device.
    """

    def __init__(
        self, start: Mapping[Point, Uniform], *, relative: bool, drop: float, generator: torch.Generator
    ) -> None:
        self._start = dict(start)
        self._drop = drop
        self._generator = generator
        device = generator.device
        scales = torch.stack([q.scale for q in start.values()]) if start else torch.zeros(0, device=device)
        self._units = scales if relative else torch.ones_like(scales)
        self.values = scales / self._units
        self.dropping = False  # without it, every value is quantized
        self._now: dict[Point, Tensor] = {}
        self.renew()

    def renew(self) -> None:
        """Take up the present `values`."""
        self._now = dict(zip(self._start, (self.values * self._units).unbind(), strict=True))

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Call after an optimiser step."""
        self.values.copy_(torch.maximum(self.values, _SMALLEST / self._units))

    def transforms(self) -> dict[Point, Transform]:
        """Functions for an `Interceptor`."""

        def quantizer(point: Point, base: Uniform) -> Transform:
            zero = int(base.zero_point)
            low, high = base.qmin - zero, base.qmax - zero

            def transform(x: Tensor) -> Tensor:
                rounded: Tensor = StraightThrough.apply(x, self._now[point], low, high)
                if self.dropping and self._drop:
                    return mixed(rounded, x, self._drop, self._generator)
                return rounded

            return transform

        return {point: quantizer(point, base) for point, base in self._start.items()}

    def hard(self) -> dict[Point, Uniform]:
        """The quantizers as learned."""
        scales = (self.values.detach() * self._units).unbind()
        return {
            point: Uniform(scale.clone(), base.zero_point, base.qmin, base.qmax)
            for (point, base), scale in zip(self._start.items(), scales, strict=True)
        }
