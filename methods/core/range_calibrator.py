"""Calibrators that set activation ranges in one float pass, by an observer per site."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.microscaling import activations_in_formats, weights_in_formats
from methods.core.numerics.observers import MinMax, Observer
from methods.core.options import WeightOptions
from methods.core.quantized import Quantized


class RangeCalibrator:
    """Ranges are extremes, or what another observer gives: subclasses only bring that."""

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return MinMax()

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Weights per channel, activations per tensor from one float pass over `images`; what has a microscaling format
        by that format's own rule.
        """
        sites = find_sites(trace(model), scheme, spec)
        activations = activations_in_formats(model, images, sites, self.observer, self.options.batch)
        weights = weights_in_formats(model, sites, symmetric=self.options.weights == "symmetric")
        return Quantized(model.net, sites, weights, activations)
