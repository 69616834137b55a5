"""How an image source and a calibrator make a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.api.contracts import (
    CalibrationData,
    Calibrator,
    ImageSource,
    QuantizedModel,
    RunContext,
    Skips,
    StatesPrecision,
    Transform,
    VisionModel,
)
from harness.api.plugins import Options, PluginInfo
from harness.api.spec import BitSpec
from harness.api.transformed import transformed

if TYPE_CHECKING:
    from torch import Tensor
from harness.api.images import check_images


class SourceThenCalibrator:
    """The usual method: images from a source, quantizer parameters from a calibrator, perhaps behind a transform.

    Args:
        info: The source's.
        options: Its resolved options.
        source: The source itself, which sees the model as it is.
        calibrator: The calibrator.
        transform: Name of the transform whose model the calibrator gets, and the transform.
    """

    def __init__(
        self,
        info: PluginInfo,
        options: Options,
        source: ImageSource,
        calibrator: Calibrator,
        transform: tuple[str, Transform] | None = None,
    ) -> None:
        self._info = info
        self._options = options
        self._source = source
        self._calibrator = calibrator
        self._transform = transform

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Ask all parts, if they have a say."""
        between = [] if self._transform is None else [self._transform[1]]
        for part in (self._source, *between, self._calibrator):
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
            if self._transform is not None:
                name, transform = self._transform
                model = transformed(transform, name, model, images, ctx)
            return self._calibrator.calibrate(model, images, spec=spec, scheme=scheme, ctx=ctx)


def images_of(
    info: PluginInfo,
    options: Options,
    source: ImageSource,
    model: VisionModel,
    *,
    spec: BitSpec,
    scheme: str,
    ctx: RunContext,
    make: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Images of a data-free source, from the cache if it has them: the one place that says what they are known by.

    Args:
        info: The source's.
        options: Its resolved options.
        source: The source itself.
        model: The float model.
        spec: Bits.
        scheme: Which tensors.
        ctx: The running cell's.
        make: Makes the same images as `source.images` does, where the caller has some of the work done already.

    Returns:
        Normalised images (n, channels, height, width).
    """
    depends = source.precision(spec, scheme) if isinstance(source, StatesPrecision) else f"{spec} {scheme}"
    identity: dict[str, Any] = {"source": info.name, "options": options.identified()}
    if depends:
        identity["precision"] = depends

    def images() -> Tensor:
        return source.images(model, spec=spec, scheme=scheme, calib=None, ctx=ctx)

    return ctx.cached_images(identity, make or images, by=info)
