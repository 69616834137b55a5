"""What `trio` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.citations import WIDENED
from methods.core.options import WeightOptions


class TrioOptions(WeightOptions):
    """Options of Trio-ViT's transformations; what lies under them is min-max."""

    shift: Literal["midrange", "printed", "none"] = Field(
        "midrange",
        description="filter-wise shift of inputs of pointwise convolutions behind an activation function: by the "
        "middle of each channel's range (code), by half its width (paper), or not at all",
    )
    migration: bool = Field(
        True,
        description="channel-wise migration: inputs of depthwise convolutions are divided, their weights multiplied",
    )
    least_factor: float = Field(0.1, gt=0, description="migration: smallest factor of a channel")
    largest_factor: float = Field(64.0, gt=0, description="migration: largest factor of a channel")
    divisor: Literal["log2", "uniform"] = Field(
        "log2", description="divisors of linear attention: rounded to powers of two, or as all other tensors"
    )
    least_exponent: int = Field(-6, ge=-64, le=64, description="divisor=log2: exponent of the smallest power of two")
    largest_exponent: int = Field(9, ge=-64, le=64, description="divisor=log2: exponent of the largest power of two")
    ranges: Literal["minmax", "percentile", "omse"] = Field("minmax", description="activation ranges, see there")

    @model_validator(mode="after")
    def _ordered(self) -> TrioOptions:
        if self.least_exponent >= self.largest_exponent:
            raise ValueError("largest_exponent must be above least_exponent")
        if self.least_factor > self.largest_factor:
            raise ValueError("largest_factor must not be below least_factor")
        return self


INFO = PluginInfo(
    name="trio",
    kind="calibrator",
    summary="Trio-ViT's filter-wise shift, channel migration and log2 divisors for linear attention, without learning",
    target="methods.calibrators.trio.calibrator:Trio",
    requires="methods.core.graph.requirements:sites",
    origin="reconstruction",
    options=TrioOptions,
    ablations={
        "none of the three": {"shift": "none", "migration": False, "divisor": "uniform"},
        "shift alone": {"migration": False, "divisor": "uniform"},
        "migration alone": {"shift": "none", "divisor": "uniform"},
        "log2 divisors alone": {"shift": "none", "migration": False},
        "shift as printed": {"shift": "printed"},
    },
    partner="real",
    paper="Shi et al., Trio-ViT: Post-Training Quantization and Acceleration for Softmax-Free Efficient Vision "
    "Transformer, arXiv 2405.03882, 2024",
    code="shihuihong214/Trio-ViT, licence unclear (formulas re-implemented)",
    deviations=(
        WIDENED,
        "nothing is learned: the paper's transformations lie under BRECQ's learned rounding and activation scales, "
        "here weights and ranges are min-max's (ranges=omse, percentile)",
        "channels are shifted by the middle of their range, (max + min) / 2, as in the released code (printed: "
        "(max - min) / 2; shift=printed)",
        "convolutions are found by data flow: pointwise ones behind an activation function, depthwise ones whose input "
        "nothing else takes; the released code names the layers of one network",
        "first and last layer are quantized as all others (the released code has their 8 bits commented out)",
        "inferred: a channel's size in migration is its largest value, not its largest magnitude",
        "with fewer than 4 bits for activations, powers of two end at that of the largest divisor seen",
        "in scheme matmul divisions stay in float, and so do their divisors",
    ),
)
