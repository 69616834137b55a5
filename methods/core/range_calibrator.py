"""Calibrators that set activation ranges in one float pass, by an observer per site."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
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
        """Weights per channel, activations per tensor from one float pass over `images`."""
        sites = find_sites(trace(model), scheme, spec)
        observers = observe(model, images, sites, self.observer, self.options.batch)
        weights = weight_quantizers(model, sites, symmetric=self.options.weights == "symmetric")
        return Quantized(model.net, sites, weights, activation_quantizers(sites, observers))
