"""What MimiQ's image source says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.synthesis.options import SynthesisOptions


class MimiqOptions(SynthesisOptions):
    """Options of MimiQ's synthesis; weights, learning rate and steps are the paper's, the rest is inferred."""

    rounds: int = Field(1, ge=1, description="restarts of the learning-rate schedule; jitter grows with each")
    steps: int = Field(2000, ge=1, description="optimisation steps per round")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of a round with linearly rising learning rate")
    lr: float = Field(0.1, gt=0, description="AdamW learning rate")
    lr_floor: float = Field(0.01, ge=0, le=1, description="share of the learning rate that the cosine ends at")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay (torch's default; inferred)")
    similarity_weight: float = Field(1.0, ge=0, description="weight of the heads' dissimilarity")
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy to random classes")
    tv_weight: float = Field(2.5e-5, ge=0, description="weight of total variation, of a batch of 16x3x224x224")
    maps: Literal["products", "softmax"] = Field(
        "products", description="attention maps that are compared: of queries times keys, or after softmax"
    )


INFO = PluginInfo(
    name="mimiq",
    kind="source",
    summary="MimiQ's images only (its quantization-aware training is out of scope): heads that attend alike",
    target="methods.sources.mimiq.source:Mimiq",
    requires="methods.core.graph.requirements:attention",
    origin="reconstruction",
    options=MimiqOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 50}, "default": {"steps": 150}, "paper": {}},
    ablations={
        "no head similarity": {"similarity_weight": 0.0},
        "maps after softmax": {"maps": "softmax"},
        "no class loss": {"class_weight": 0.0},
        "no total variation": {"tv_weight": 0.0},
    },
    partner="minmax",
    paper="Choi et al., MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with Encouraging Inter-Head "
    "Attention Similarity, AAAI 2025",
    code="iamkanghyunchoi/mimiq holds a README only; nothing taken",
    deviations=(
        "stage 1 only: the paper trains the quantized model on 10,000 images for 100 to 200 epochs (LSQ, head-wise "
        "distillation), which is out of scope; its numbers are not comparable with calibration on 32 images",
        "SSIM has one window, the whole map of a query, and constants relative to the range of a layer's maps; the "
        "dissimilarity 1 - SSIM^2 is summed over pairs of heads, averaged over images, queries and layers. Inferred",
        "a layer with one head has no pairs and is left out; class and register tokens are left out of maps and "
        "queries; in windows (Swin) a map has the keys of the query's window",
        "AdamW has PSAQ-ViT's betas and torch's weight decay, and images are rolled and mirrored as there. Inferred",
        "one batch of all images (the paper: 16 per batch)",
        "total variation is PSAQ-ViT's sum of four norms without a target, scaled from 16 RGB images of 224x224",
        "presets quick and default take 50 and 150 steps, PSAQ-ViT's budgets (preset paper: 2,000)",
    ),
)
