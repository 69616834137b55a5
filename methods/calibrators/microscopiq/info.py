"""What `microscopiq` says of itself."""

from __future__ import annotations

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.compensation.options import LAYERS, CompensationOptions


class MicroscopiqOptions(CompensationOptions):
    """Options of MicroScopiQ."""

    macro_block: int = Field(128, ge=16, description="weights of an output channel whose inliers share a scale")
    micro_block: int = Field(8, ge=2, le=32, description="weights among which outliers share one, and prune inliers")
    sigmas: float = Field(3.0, gt=0, description="standard deviations from the macro-block's mean that make an outlier")
    migration: float = Field(
        0.7,
        ge=0,
        le=1,
        description="how much of the spread of LayerNorm's channels goes into the weights behind it (SmoothQuant's "
        "alpha); 0: none",
    )


INFO = PluginInfo(
    name="microscopiq",
    kind="calibrator",
    summary="MicroScopiQ: weights in blocks of integers, outliers in twice the bits, for which others are pruned",
    target="methods.calibrators.microscopiq.calibrator:Microscopiq",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=MicroscopiqOptions,
    ablations={
        "no outliers": {"sigmas": 1e6},
        "no compensation": {"damping": 1e6},
        "no migration": {"migration": 0.0},
        "outliers share a scale in 32 weights": {"micro_block": 32},
    },
    partner="real",
    blocks="activations",
    paper="Ramachandran, Kundu, Krishna: MicroScopiQ: Accelerating Foundational Models through Outlier-Aware "
    "Microscaling Quantization, ISCA 2025, doi:10.1145/3695053.3730989",
    code="georgia-tech-synergy-lab/MicroScopiQ-LLM-Quantization, MIT (language models; formulas only)",
    deviations=(
        "the paper has no ViT, DeiT or Swin, so that no number here has a published counterpart",
        "activations are what the precision says: plain integers at W4A8, microscaling ones in blocks of 32 at "
        "W4AMXINT8 (the paper: MX-INT in groups of 128)",
        "macro- and micro-blocks lie along what an output channel sums over, as the paper's saliency and its hardware "
        "need (the released code cuts a column of the weight into blocks of output channels, prunes as many weights "
        "of the column as it has outliers, and squares the saliency's divisor)",
        "inferred: outliers are +-(1 + k / 2^m) 2^e under one exponent for a micro-block, that of its largest, below "
        "which smaller ones are raised to 2^e; if more than half of a micro-block is outlying, the largest half is",
        "inferred: a macro-block's outliers and scale are found when it is reached, on weights as compensated by then, "
        "and what is pruned in a micro-block when that is reached; the scale is the OCP rule's, not Eq. 1 rounded",
        "multiplying outliers by the inliers' scale first is left out: powers of two change nothing here",
        "effective bits count macro-blocks' scales and a bit for each micro-block, which the paper leaves out",
        *LAYERS,
    ),
)
