"""What `gptq` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.compensation.options import LAYERS, CompensationOptions


class GptqOptions(CompensationOptions):
    """Options of GPTQ."""

    weights: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="per-channel grid of plain integers: symmetric with half-integer divisor, or min-max"
    )


INFO = PluginInfo(
    name="gptq",
    kind="calibrator",
    summary="GPTQ: rounds weights column by column, the others make up for the error (closed form, not trained)",
    target="methods.calibrators.gptq.calibrator:Gptq",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=GptqOptions,
    ablations={
        "float inputs": {"inputs": "float"},
        "hardly damped": {"damping": 1e-4},
        "strongly damped": {"damping": 1.0},
    },
    partner="real",
    blocks="all",
    paper="Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, "
    "ICLR 2023",
    code="IST-DASLab/gptq, Apache-2.0 (formulas only)",
    deviations=(
        "made for language models; weights are changed by closed-form compensation on the images, nothing descends a "
        "gradient",
        *LAYERS,
        "a layer's inputs are behind the activation quantizers (the reference quantizes weights alone); inputs=float "
        "has them of the float model",
        "columns in their order, without the reference's option to sort them by activations; scales of microscaling "
        "blocks are found when the block is reached, on the columns as they are by then",
    ),
)
