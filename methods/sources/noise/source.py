"""Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.options import ImageCount
from methods.core.synthesis.descent import start_images
from methods.core.synthesis.precision import OfFloatModel


class Noise(OfFloatModel):
    """Gaussian noise N(0, 1) in normalised space, as PSAQ-ViT's `--mode 1`; not clamped to valid pixels."""

    def __init__(self, options: ImageCount) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Noise images (n, *input_shape)."""
        return start_images(model, self.options.images, ctx)
