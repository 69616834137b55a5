"""Options of the calibrators that round weights column by column."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import Options


class CompensationOptions(Options):
    """Those that they share."""

    damping: float = Field(
        0.01, gt=0, description="what is added to the inputs' second moments, as a share of their mean diagonal"
    )
    block: int = Field(128, ge=1, description="columns after which errors are passed on to all behind them")
    inputs: Literal["quantized", "float"] = Field(
        "quantized", description="a layer's inputs: as quantized so far, activations too, or the float model's"
    )
    activation_ranges: Literal["minmax", "percentile", "omse"] = Field(
        "minmax", description="observer that gives the activations' ranges, on the float model"
    )


LAYERS = (
    "linear layers and convolutions without groups; other convolutions are rounded to the nearest",
    "inputs that are 0 on all images keep their rounded weights (the reference: 0)",
)
