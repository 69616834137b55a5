"""How an image source and a calibrator make a method."""

from __future__ import annotations

from harness.checks import check_images
from harness.contracts import (
    CalibrationData,
    Calibrator,
    ImageSource,
    QuantizedModel,
    RunContext,
    Skips,
    VisionModel,
    images_of,
)
from harness.plugins import Options, PluginInfo
from harness.spec import BitSpec


class SourceThenCalibrator:
    """The usual method: images from a source, quantizer parameters from a calibrator."""

    def __init__(self, info: PluginInfo, options: Options, source: ImageSource, calibrator: Calibrator) -> None:
        self._info = info
        self._options = options
        self._source = source
        self._calibrator = calibrator

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Ask both parts, if they have a say."""
        for part in (self._source, self._calibrator):
            if isinstance(part, Skips):
                reason = part.skip(model, spec=spec, scheme=scheme)
                if reason is not None:
                    return reason
        return None

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Make images (cached if they are synthetic), keep them for galleries, calibrate on them."""
        if self._info.data == "none":
            images = images_of(self._info, self._options, self._source, model, spec=spec, scheme=scheme, ctx=ctx)
        else:
            with ctx.stage("images"):
                images = self._source.images(model, spec=spec, scheme=scheme, calib=calib, ctx=ctx)
        check_images(images, model, f"image source '{self._info.name}'")
        ctx.keep_images(images)
        with ctx.stage("calibrate"):
            return self._calibrator.calibrate(model, images, spec=spec, scheme=scheme, ctx=ctx)
