"""Options that several plugins share, apart from their code so that plugins can be listed without importing torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import Options


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
