"""What `brecq` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import SCALES, SHARED, VIT, LossName, LossOptions, presets, with_scales


class BrecqOptions(LossOptions):
    """Options of BRECQ: rounding first, with activations in float, then activation scales."""

    loss: LossName = Field("fisher", description="distance of block outputs while the rounding is learned (see qdrop)")
    scale_steps: int = Field(5000, ge=0, description="steps of the second stage for a unit; 0: scales stay as observed")
    scale_inputs: Literal["quantized", "float", "mixed"] = Field(
        "float", description="the same as `inputs`, of the second stage (the released code: float)"
    )
    scale_norm: float = Field(2.4, gt=0, description="power of the second stage's error (the released code: 2.4)")
    scale_lr: float = Field(4e-4, gt=0, description="Adam's learning rate of the activation scales")
    scale_units: Literal["absolute", "relative"] = Field(
        "absolute", description="whether that rate is in the scale's own units or relative to its start"
    )


INFO = PluginInfo(
    name="brecq",
    kind="calibrator",
    summary="BRECQ: trains rounding block by block under a Fisher-weighted error, then activation scales",
    target="methods.calibrators.brecq.calibrator:Brecq",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=BrecqOptions,
    presets=with_scales(presets(steps=(50, 150), scale_steps=(25, 50))),
    ablations={
        "unweighted squared error": {"loss": "mse"},
        "activation scales not learned": {"scale_steps": 0},
        "float inputs": {"inputs": "float"},
    },
    partner="real",
    trains="quantizers",
    paper="Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021",
    code="yhhhli/BRECQ, MIT (formulas re-implemented)",
    deviations=(
        *SHARED,
        VIT,
        SCALES,
        "squared gradients, the paper's (the released code: those of |g| + 1), are normalised to mean 1 over a unit's "
        "outputs; they are of the distance between the float output and that with all units up to this one quantized, "
        "since without labels the gradient is 0 at the float model itself",
    ),
)
