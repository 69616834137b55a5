"""How an image source and a calibrator make a method."""

from __future__ import annotations

from typing import Any

from harness.contracts import (
    CalibrationData,
    Calibrator,
    ImageSource,
    QuantizedModel,
    RunContext,
    VisionModel,
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
            if hasattr(part, "skip"):
                reason: str | None = part.skip(model, spec=spec, scheme=scheme)
                if reason is not None:
                    return reason
        return None

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Make images (cached if they are synthetic), keep them for galleries, calibrate on them."""

        def make() -> Any:
            return self._source.images(model, spec=spec, scheme=scheme, calib=calib, ctx=ctx)

        if self._info.data == "none":
            identity = {"source": self._info.name, "options": self._options.model_dump(mode="json")}
            if hasattr(self._source, "precision"):
                identity["precision"] = self._source.precision(spec, scheme)
            images = ctx.cached_images(identity, make)
        else:
            with ctx.stage("images"):
                images = make()
        ctx.keep_images(images)
        with ctx.stage("calibrate"):
            return self._calibrator.calibrate(model, images, spec=spec, scheme=scheme, ctx=ctx)
