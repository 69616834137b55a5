"""Real training images."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.options import ImageCount


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
