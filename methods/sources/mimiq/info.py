"""What MimiQ's image source says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import HEAD_DEVIATIONS, MASKAQ_CODE
from methods.core.synthesis.options import HeadOptions

INFO = PluginInfo(
    name="mimiq",
    kind="source",
    summary="MimiQ's images only (its quantization-aware training is out of scope): heads that attend alike",
    target="methods.sources.mimiq.source:Mimiq",
    requires="methods.core.graph.requirements:attention",
    origin="reconstruction",
    options=HeadOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 50}, "default": {"steps": 150}, "paper": {}},
    ablations={
        "no head similarity": {"similarity_weight": 0.0},
        "maps after softmax": {"maps": "softmax"},
        "no class loss": {"class_weight": 0.0},
        "no total variation": {"tv_weight": 0.0},
        "no offsets, shifts and contrasts": {"noise": 0.0, "colour": 0.0},
    },
    partner="minmax",
    paper="Choi et al., MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with Encouraging Inter-Head "
    "Attention Similarity, AAAI 2025",
    code=f"iamkanghyunchoi/mimiq holds a README only; settings are those of {MASKAQ_CODE}, which is built on MimiQ's",
    deviations=(
        "stage 1 only: the paper trains the quantized model on 10,000 images for 100 to 200 epochs (LSQ, head-wise "
        "distillation), which is out of scope; its numbers are not comparable with calibration on 32 images",
        *HEAD_DEVIATIONS,
    ),
)
