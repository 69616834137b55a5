"""What OuroMamba's image source says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.citations import OUROMAMBA, OUROMAMBA_CODE, OUTPUT_ERROR
from methods.core.synthesis.options import SynthesisOptions, check_window


class OuroMambaGenOptions(SynthesisOptions):
    """Options of OuroMamba's synthesis; window, positives, mixing and steps are the paper's, the rest is inferred."""

    rounds: int = Field(1, ge=1, description="restarts of the learning-rate schedule; jitter grows with each")
    steps: int = Field(1000, ge=1, description="optimisation steps per round")
    lr: float = Field(0.2, gt=0, description="Adam learning rate (PSAQ-ViT's; inferred)")
    contrast_weight: float = Field(1.0, ge=0, description="weight of the patches' contrastive loss")
    output_weight: float = Field(1.0, ge=0, description="weight of the output loss")
    output_target: Literal["mae", "class"] = Field(
        "mae", description="output loss against random targets: mean absolute error, or the task's loss"
    )
    mixing: Literal["steps", "equal"] = Field(
        "steps", description="weights of neighbours' hidden states: their steps' means over channels, or equal"
    )
    neighbourhood: int = Field(5, ge=3, le=9, description="side of the window of neighbours, odd")
    positives: int = Field(12, ge=1, description="most similar neighbours taken as positives (of 24)")
    temperature: float = Field(0.1, gt=0, description="of the contrastive loss (own choice)")

    @model_validator(mode="after")
    def _window(self) -> Self:
        check_window(self.neighbourhood, self.positives)
        return self


INFO = PluginInfo(
    name="ouromamba-gen",
    kind="source",
    summary="OuroMamba's images for Vision Mamba: contrast of the scans' implicit attention, patched hidden states",
    target="methods.sources.ouromamba_gen.source:OuroMambaImages",
    requires="methods.core.graph.requirements:scans",
    origin="reconstruction",
    options=OuroMambaGenOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 50}, "default": {"steps": 150}, "paper": {"images": 128}},
    ablations={
        "no contrast": {"contrast_weight": 0.0},
        "no output loss": {"output_weight": 0.0},
        "hidden states mixed equally": {"mixing": "equal"},
        "cross-entropy": {"output_target": "class"},
    },
    partner="ouromamba",
    paper=OUROMAMBA,
    code=OUROMAMBA_CODE,
    deviations=(
        "no code of the generator was released; loss form (multi-positive InfoNCE as in clamp), temperature, "
        "optimizer, augmentation and the loss's place in the network (all scans, averaged) are inferred",
        "implicit attention is unrolled with the channels' mean step and decay instead of channel by channel, and a "
        "patch's vector is its row of attention to all patches. Inferred",
        "both of an image's patches that are compared come from the float model, and both have a gradient. Inferred",
        OUTPUT_ERROR,
        "32 images (preset paper, and the paper: 128); presets quick and default take 50 and 150 steps (1,000)",
    ),
)
