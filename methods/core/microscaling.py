"""Microscaling formats at sites: quantizers by the format's own rule, with nothing to search and little to observe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from harness.api.contracts import VisionModel
from harness.api.formats import Format
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import Transform
from methods.core.graph.sites import Point, Sites
from methods.core.numerics.microscaling import Microscaled, MicroscaledWeight, blocks_of
from methods.core.numerics.observers import Observer
from methods.core.numerics.quantizers import Quantizer


def weights_in_formats(model: VisionModel, sites: Sites, *, symmetric: bool) -> dict[str, Transform]:
    """Quantizers of all weights: in the format of their site, or min-max ones where it has none."""
    parameters = dict(model.net.named_parameters())
    plain = replace(sites, weights=tuple(site for site in sites.weights if site.format is None))
    found: dict[str, Transform] = dict(weight_quantizers(model, plain, symmetric=symmetric))
    for site in sites.weights:
        if site.format is not None:
            found[site.parameter] = MicroscaledWeight.of(parameters[site.parameter], site.format, site.axis)
    return found


def activations_in_formats(
    model: VisionModel, images: Tensor, sites: Sites, make_observer: Callable[[], Observer], batch: int
) -> dict[Point, Quantizer]:
    """Quantizers of all activations, from one float pass: in the format of their site, or of the observed range where
    it has none.
    """
    blocks = {site.point: Seen(site.format, site.axis) for site in sites.activations if site.format is not None}
    plain = replace(sites, activations=tuple(site for site in sites.activations if site.format is None))
    observers = observe(model, images, sites, make_observer, batch, instead=blocks)
    found: dict[Point, Quantizer] = dict(activation_quantizers(plain, observers))
    return found | {point: seen.quantizer() for point, seen in blocks.items()}


class Seen:
    """What a site in blocks is asked for: how many scales go with how many values (an `Observer` without a range)."""

    def __init__(self, stored: Format, axis: int) -> None:
        self._stored, self._axis = stored, axis
        self._counts = 0, 0

    def update(self, x: Tensor) -> None:
        """Count those of the first index of the first axis, so that the size of a batch does not matter."""
        first = x[:1]
        self._counts = blocks_of(first, self._axis, self._stored.group or 1), first.numel()

    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        """There is none."""
        quantizer = self.quantizer()
        return quantizer.low, quantizer.high

    def quantizer(self) -> Microscaled:
        """The site's."""
        return Microscaled(self._stored, self._axis, *self._counts)
