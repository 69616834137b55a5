"""What CLAMP-ViT's image source says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.citations import CLAMP, CLAMP_CODE, OUTPUT_ERROR
from methods.core.synthesis.options import SynthesisOptions, check_window


class SynthesisStage(SynthesisOptions):
    """Stage 1. Optimizer and schedule are PSAQ-ViT's, since CLAMP-ViT's are not known."""

    contrast: Literal["infonce", "log-of-sums"] = Field(
        "infonce", description="form of the patch-contrastive loss: mean over positives of logs, or log of their sum"
    )
    gradient: Literal["float", "quantized", "both"] = Field(
        "float",
        description="branch that the image's gradient takes; the figure draws it through the float one",
    )
    tap: Literal["attention", "block"] = Field(
        "attention", description="whose output patches are contrasted: attention's (a digest) or the block's (figure)"
    )
    temperature: float = Field(0.1, gt=0, description="of the patch-contrastive loss (own choice)")
    neighbourhood: int = Field(3, ge=3, le=9, description="side of the window of neighbours, odd (figure 5d: 3)")
    positives: int = Field(4, ge=1, description="most similar neighbours taken as positives (figure 5d: 4 of 8)")
    colocated: bool = Field(False, description="the float patch at the anchor's own place is a positive too")
    output_weight: float = Field(1.0, ge=0, description="weight of the output loss")
    output_target: Literal["class", "l1", "mae"] = Field(
        "class",
        description="output loss: the task loss against random targets, the mean absolute difference of the float "
        "and the quantized model's outputs, or OuroMamba's mean absolute error to the random targets",
    )
    tv_weight: float = Field(0.0, ge=0, description="weight of total variation; the method's figure shows none")
    tv_target: float = Field(2750, ge=0, description="its target at 32x3x224x224 (middle of PSAQ-ViT's)")

    @model_validator(mode="after")
    def _window(self) -> Self:
        check_window(self.neighbourhood, self.positives)
        return self


SYNTHESIS = (
    "loss form (multi-positive InfoNCE), temperature, borders, optimizer and step counts are inferred",
    "the output loss is the float model's task loss against random targets, as in PSAQ-ViT (a random class per image; "
    "for dense tasks random boxes or label maps, our own)",
    "the first quantized model has min-max weights, in mixed precision of the budget's whole bits, and float "
    "activations",
    OUTPUT_ERROR,
    "presets quick and default take 2 x 25 and 2 x 75 synthesis steps (preset paper: 2 x 500, PSAQ-ViT's number)",
)

INFO = PluginInfo(
    name="clamp",
    kind="source",
    summary="CLAMP-ViT stage 1: patch-contrastive images, anchors from the quantized model",
    target="methods.sources.clamp.source:ClampImages",
    requires="methods.core.graph.requirements:patches",
    origin="reconstruction",
    options=SynthesisStage,
    presets={"quick": {"steps": 25}, "default": {"steps": 75}, "paper": {}},
    partner="minmax",
    paper=CLAMP,
    code=CLAMP_CODE,
    deviations=SYNTHESIS,
)
