"""What CLAMP-ViT's image source and method say of themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.plugins import PluginInfo
from methods.core.synthesis_options import SynthesisOptions


class SynthesisStage(SynthesisOptions):
    """Stage 1. Optimizer and schedule are PSAQ-ViT's, since CLAMP-ViT's are not known."""

    temperature: float = Field(0.1, gt=0, description="of the patch-contrastive loss (own choice)")
    positives: int = Field(4, ge=1, le=7, description="most similar of the 8 neighbours taken as positives (figure 5d)")
    output_weight: float = Field(1.0, ge=0, description="weight of the output loss, cross-entropy to random classes")
    tv_weight: float = Field(0.0, ge=0, description="weight of total variation; the method's figure shows none")
    tv_target: float = Field(2750, ge=0, description="its target at 32x3x224x224 (middle of PSAQ-ViT's)")


class SearchStage(SynthesisStage):
    """Stage 2, on top of stage 1."""

    population: int = Field(15, ge=2, description="candidates a layer (Evol-Q's value)")
    passes: int = Field(10, ge=1, description="passes over all layers (figure 5a)")
    cycles: int = Field(6, ge=1, description="evolution cycles a layer and pass (figure 5a)")
    tournament: int = Field(10, ge=1, description="draws of a parent's tournament (Evol-Q's value)")
    crossover: float = Field(0.5, ge=0, le=1, description="probability of blending with a second parent")
    mutation: float = Field(0.03, gt=0, lt=1, description="largest relative change of a scale multiplier")
    spread: float = Field(0.3, ge=0, lt=1, description="initial multipliers reach down to 1 - spread")
    diversity: bool = Field(True, description="each cycle adds a child of a random parent")
    search_temperature: float = Field(0.1, gt=0, description="of the layer-output contrastive loss (own choice)")
    output_loss: Literal["accept", "candidate", "none"] = Field(
        "accept",
        description="where the output loss enters fitness: once per layer, when its best gene is accepted; "
        "for every candidate; or nowhere",
    )
    refresh_steps: int = Field(20, ge=0, description="synthesis steps after each pass, from the images at hand")


_PAPER = "Ramachandran et al., CLAMP-ViT: Contrastive Data-Free Learning for Adaptive PTQ of ViTs, ECCV 2024"
_CODE = "georgia-tech-synergy-lab/CLAMP-ViT (MIT with a non-commercial disclaimer): evaluation only; nothing taken"
_SYNTHESIS = (
    "loss form (multi-positive InfoNCE), temperature, borders, optimizer and step counts are inferred",
    "the output loss is the float model's cross-entropy to a random class an image, as in PSAQ-ViT",
    "the first quantized model has min-max weights and float activations",
)

SOURCE = PluginInfo(
    name="clamp",
    kind="source",
    summary="CLAMP-ViT stage 1: patch-contrastive images, anchors from the quantized model",
    target="methods.clamp.synthesis:ClampImages",
    origin="reconstruction",
    options=SynthesisStage,
    presets={"quick": {"steps": 50}, "default": {"steps": 75}, "paper": {}},
    partner="minmax",
    paper=_PAPER,
    code=_CODE,
    deviations=_SYNTHESIS,
)
METHOD = PluginInfo(
    name="clamp",
    kind="method",
    summary="CLAMP-ViT: patch-contrastive synthesis alternating with layer-wise evolutionary search of scales",
    target="methods.clamp.method:Clamp",
    origin="reconstruction",
    options=SearchStage,
    presets={
        "quick": {"steps": 50, "passes": 1, "refresh_steps": 0},
        "default": {"steps": 75, "passes": 2, "refresh_steps": 10},
        "paper": {},
    },
    paper=_PAPER,
    code=_CODE,
    deviations=(
        *_SYNTHESIS,
        "weights are asymmetric min-max with a zero point (the paper's footnote 4), where psaq, noise and real use the "
        "symmetric quantizer of PSAQ-ViT's code: clamp+minmax and minmax.weights=asymmetric separate the two",
        "a gene is one multiplier a layer on its per-channel scales; activation ranges are min-max on the images",
        "crossover, mutation width, initial spread and the layer-output loss are inferred",
        "images are refreshed once a pass from the images at hand; the paper's cadence (every C/2 cycles) is ambiguous",
    ),
)
