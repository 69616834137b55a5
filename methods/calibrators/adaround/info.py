"""What `adaround` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import SHARED, VIT, RoundingOptions, presets


class AdaroundOptions(RoundingOptions):
    """Options of AdaRound."""

    steps: int = Field(10000, ge=1, description="optimisation steps for a unit (a block, or a layer)")
    annealing: Literal["linear", "cosine"] = Field("cosine", description="how the exponent goes from start to end")
    weight_norm: float = Field(2.0, gt=0, description="exponent of that error")
    unit: Literal["layer", "block"] = Field(
        "layer",
        description="what is reconstructed at a time: a layer with the activation function behind it, or a block",
    )
    activations: Literal["float", "quantized"] = Field(
        "float", description="activations while the rounding is learned; they are quantized afterwards in any case"
    )


INFO = PluginInfo(
    name="adaround",
    kind="calibrator",
    summary="AdaRound: trains whether each weight is rounded up or down, layer by layer",
    target="methods.calibrators.adaround.calibrator:Adaround",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=AdaroundOptions,
    presets=presets(steps=(50, 250)),
    ablations={
        "block by block": {"unit": "block"},
        "activations quantized while learning": {"activations": "quantized"},
        "float inputs": {"inputs": "float"},
        "no regularizer": {"regularization": 0.0},
    },
    partner="real",
    trains="quantizers",
    paper="Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020",
    code="no code by the authors; formulas as restated by BRECQ",
    deviations=(
        *SHARED,
        VIT,
        "steps, learning rate and cosine annealing are from memory of the paper, not checked against a text",
    ),
)
