"""What the baseline sources and calibrators say of themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.plugins import Options, PluginInfo


class ImageCount(Options):
    """Options of sources that draw images."""

    images: int = Field(32, ge=1, description="number of calibration images")


class WeightOptions(Options):
    """Options that all range calibrators share."""

    weights: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="per-channel weight quantizer: symmetric with half-integer divisor, or min-max"
    )
    batch: int = Field(32, ge=1, description="images per calibration batch")


class EmaOptions(WeightOptions):
    """Options of the moving-average calibrators."""

    batch: int = Field(4, ge=1, description="images per calibration batch; the average runs over batches")
    momentum: float = Field(0.01, gt=0, le=1, description="weight of the newest batch")


class PercentileOptions(EmaOptions):
    """Options of the percentile calibrator."""

    quantile: float = Field(0.99999, gt=0.5, lt=1, description="upper quantile kept; the lower is 1 - quantile")


_FQVIT = "FQ-ViT (IJCAI 2022), observers"
_FQVIT_CODE = "megvii-research/FQ-ViT, Apache-2.0"
_BATCHES = {"paper": {"batch": 100}}
_BATCHED = "presets quick and default have batches of 4 images (preset paper and the reference: 100)"
_WIDENED = "activation ranges are widened to contain 0 (the reference clips the zero point instead)"

NOISE = PluginInfo(
    name="noise",
    kind="source",
    summary="Gaussian noise in normalised space: the floor of data-free calibration",
    target="methods.baselines:Noise",
    options=ImageCount,
    partner="minmax",
    paper="PSAQ-ViT (ECCV 2022), mode 1 of its code",
    code="zkkli/PSAQ-ViT, Apache-2.0",
)
REAL = PluginInfo(
    name="real",
    kind="source",
    summary="real training images, without labels: not data-free, the ceiling of image sources",
    target="methods.baselines:Real",
    data="images",
    options=ImageCount,
    partner="minmax",
    paper="PSAQ-ViT (ECCV 2022), mode 2 of its code",
    code="zkkli/PSAQ-ViT, Apache-2.0",
    deviations=("images are drawn per repetition by seed (the reference takes the first shuffled batch)",),
)
MINMAX = PluginInfo(
    name="minmax",
    kind="calibrator",
    summary="activation ranges are the extremes seen in one float pass",
    target="methods.baselines:MinMaxCalibrator",
    requires="methods.core.requirements:sites",
    options=WeightOptions,
    partner="real",
    paper=_FQVIT,
    code=_FQVIT_CODE,
    deviations=(_WIDENED,),
)
EMA = PluginInfo(
    name="ema",
    kind="calibrator",
    summary="exponential moving average of the extremes of batches",
    target="methods.baselines:EmaCalibrator",
    requires="methods.core.requirements:sites",
    options=EmaOptions,
    partner="real",
    paper=_FQVIT,
    code=_FQVIT_CODE,
    presets=_BATCHES,
    deviations=(_WIDENED, _BATCHED),
)
PERCENTILE = PluginInfo(
    name="percentile",
    kind="calibrator",
    summary="moving average of the 0.99999 quantiles of batches",
    target="methods.baselines:PercentileCalibrator",
    requires="methods.core.requirements:sites",
    options=PercentileOptions,
    partner="real",
    paper=_FQVIT,
    code=_FQVIT_CODE,
    presets=_BATCHES,
    deviations=(_WIDENED, _BATCHED),
)
OMSE = PluginInfo(
    name="omse",
    kind="calibrator",
    summary="activation ranges of least mean squared error: sets its own clipping, so that images compare fairly",
    target="methods.baselines:OmseCalibrator",
    requires="methods.core.requirements:sites",
    options=WeightOptions,
    partner="real",
    paper=_FQVIT,
    code=_FQVIT_CODE,
    deviations=(
        _WIDENED,
        "the error is measured on a histogram of all images (the reference: raw values of the last batch)",
    ),
)
