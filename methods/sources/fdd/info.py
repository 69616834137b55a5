"""What FDD's image source says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.synthesis.options import PsaqOptions


class FddOptions(PsaqOptions):
    """Options of FDD's synthesis: PSAQ-ViT's, and the bands of its curriculum."""

    rounds: int = Field(5, ge=1, description="stages, each with a restart of the learning-rate schedule")
    steps: int = Field(200, ge=1, description="optimisation steps per stage")
    jitter: int = Field(5, ge=0, description="largest roll in the first stage, in pixels of a 224-pixel image")
    bands: tuple[tuple[float, float, float], ...] = Field(
        ((0.2, 0.4, 0.1), (0.3, 0.5, 0.2), (0.4, 0.6, 0.3), (0.5, 0.7, 0.4), (0.6, 1.0, 0.0)),
        min_length=1,
        description="a stage's radii in shares of the highest frequency: where its low band ends, and where its high "
        "band ends and begins; with more or fewer rounds the stages are spread over them",
    )
    low_share: float = Field(0.5, ge=0, le=1, description="share of a stage's steps on the low band, before the high")
    distillation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="on the high band, weight of the distance to the low band's prediction; the class "
        "loss has the rest",
    )
    entropy_band: Literal["input", "low"] = Field(
        "input",
        description="on the high band, whose patch similarities count: its own, or the low band's (the reference code, "
        "whose hooks keep the pass that ran last)",
    )

    @model_validator(mode="after")
    def _radii(self) -> Self:
        if any(not (low > 0 and 0 <= begin < end) for low, end, begin in self.bands):
            raise ValueError("a band must begin before it ends")
        return self


INFO = PluginInfo(
    name="fdd",
    kind="source",
    summary="FDD: PSAQ-ViT's losses on low, then high frequencies, high ones taught by the low ones' prediction",
    target="methods.sources.fdd.source:Fdd",
    requires="methods.core.graph.requirements:blocks",
    origin="published code",
    options=FddOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 10}, "default": {"steps": 30}, "paper": {}},
    ablations={
        "no curriculum: all frequencies": {"bands": ((2.0, 2.0, 0.0),)},
        "no distillation": {"distillation": 0.0},
        "no class loss": {"class_weight": 0.0},
        "similarities of the low band, as the reference": {"entropy_band": "low"},
    },
    partner="minmax",
    paper="Frequency Domain Distillation for Data-Free Quantization of Vision Transformer, PRCV 2023",
    code="ngrxmu/FDD-DFQ-ViT, no licence (formulas re-implemented, nothing taken)",
    deviations=(
        "frequencies are masked around zero frequency exactly (the reference: half a step off)",
        "patch similarities are the filtered image's own (the reference: while distilling those of the low-passed "
        "image, since its hooks keep the later pass; entropy_band=low)",
        "the largest roll grows 5, 10, ... 25 pixels of 224 over the stages (the reference: 0, 6, 13, 20, 26)",
        "total-variation target and jitter are scaled from 224x224 RGB to the model's image size",
        "the distillation distance is the task's output distance (classification: KL, as the reference)",
        "presets quick and default take 5 x 10 and 5 x 30 steps, PSAQ-ViT's budgets (preset paper: 5 x 200)",
    ),
)
