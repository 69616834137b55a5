"""Baselines: noise and real images, and the range calibrators."""

from __future__ import annotations

from torch import Tensor

from harness.contracts import CalibrationData, QuantizedModel, RunContext, VisionModel
from harness.spec import BitSpec
from methods.baselines_info import EmaOptions, ImageCount, PercentileOptions, WeightOptions
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.observers import Ema, MinMax, Observer, Omse
from methods.core.quantized import Quantized
from methods.core.sites import find_sites
from methods.core.synthesis import start_images
from methods.core.trace import trace_of


class Noise:
    """Gaussian noise N(0, 1) in normalised space, as PSAQ-ViT's `--mode 1`; not clamped to valid pixels."""

    def __init__(self, options: ImageCount) -> None:
        self.options = options

    def precision(self, spec: BitSpec, scheme: str) -> str:
        """Of neither bits nor scheme: only the float model takes part."""
        return ""

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Noise images (n, *input_shape)."""
        return start_images(model, self.options.images, ctx)


class Real:
    """Training images drawn by seed."""

    def __init__(self, options: ImageCount) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Normalised training images (n, *input_shape)."""
        assert calib is not None, "the harness hands calibration data to a source that declares data='images'"
        return calib.images(self.options.images, ctx.generator("calibration-images")).to(model.device)


class MinMaxCalibrator:
    """Ranges are extremes; the base of the other range calibrators, which only bring another observer."""

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return MinMax()

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Weights per channel, activations per tensor from one float pass over `images`."""
        sites = find_sites(trace_of(model), scheme, spec)
        observers = observe(model, images, sites, self.observer, self.options.batch)
        weights = weight_quantizers(model, sites, symmetric=self.options.weights == "symmetric")
        return Quantized(model.net, sites, weights, activation_quantizers(sites, observers))


class EmaCalibrator(MinMaxCalibrator):
    """Ranges are moving averages of batch extremes."""

    options: EmaOptions

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return Ema(self.options.momentum)


class PercentileCalibrator(MinMaxCalibrator):
    """Ranges are moving averages of batch quantiles."""

    options: PercentileOptions

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return Ema(self.options.momentum, self.options.quantile)


class OmseCalibrator(MinMaxCalibrator):
    """Ranges of least squared error."""

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return Omse()
