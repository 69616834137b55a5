"""What MaskAQ's image source says of itself."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.citations import HEAD_DEVIATIONS, MASKAQ_CODE
from methods.core.synthesis.options import HeadOptions


class MaskaqOptions(HeadOptions):
    """Options of MaskAQ's synthesis: MimiQ's, and those of its own two terms."""

    entropy_weight: float = Field(
        1.0, ge=0, description="weight of the entropy of similarities between patches' attention, which grows"
    )
    rows: int = Field(64, ge=2, description="patches whose attention that compares, drawn for every map in each step")
    align_weight: float = Field(
        0.1, ge=0, description="weight of the masked difference of the quantized model's attention to the float one's"
    )
    mask_start: float = Field(
        0.5, gt=0, le=1, description="share of patches, those that the float model looks at most, in the first mask"
    )
    mask_end: float = Field(0.1, gt=0, le=1, description="the same in the last mask; linear between")
    mask_drop: float = Field(0.3, ge=0, lt=1, description="share of a mask's patches that are dropped at random")
    align_windows: bool = Field(
        False,
        description="windowed attention (Swin) is aligned too; the released code computes its term and never adds it",
    )
    ranges: int = Field(
        4,
        ge=1,
        description="how often, evenly over the steps, the quantized model's activation ranges are taken from the "
        "images at hand; the first time is from noise",
    )

    @model_validator(mode="after")
    def _mask_shrinks(self) -> Self:
        if self.mask_end > self.mask_start:
            raise ValueError(f"mask_end, {self.mask_end:g}, must not exceed mask_start, {self.mask_start:g}")
        return self


INFO = PluginInfo(
    name="maskaq",
    kind="source",
    summary="MaskAQ's images only: MimiQ's, with diverse attention that a quantized model shares where it matters",
    target="methods.sources.maskaq.source:Maskaq",
    requires="methods.core.graph.requirements:attention",
    origin="published code",
    options=MaskaqOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 50}, "default": {"steps": 150}, "paper": {}},
    ablations={
        "no alignment": {"align_weight": 0.0},
        "no attention entropy": {"entropy_weight": 0.0},
        "no mask: all patches": {"mask_start": 1.0, "mask_end": 1.0, "mask_drop": 0.0},
        "mask without dropout": {"mask_drop": 0.0},
        "windows aligned too": {"align_windows": True},
    },
    partner="minmax",
    paper="Qian et al., Selective Coupling of Decoupled Informative Regions: Masked Attention Alignment for Data-Free "
    "Quantization of Vision Transformers (MaskAQ), ICML 2026",
    code=MASKAQ_CODE,
    deviations=(
        "images only: the paper trains the quantized model on 10,000 of them and makes all anew three times meanwhile, "
        "which is out of scope; its numbers are not comparable with calibration on 32 images",
        "the quantized model is not trained: min-max weights at the cell's bits and min-max activation ranges of the "
        "images at hand, taken four times (option ranges; the code: learned steps). In mixed precision it has the "
        "budget's whole bits",
        "what is masked and aligned without a class token (in the code its row of products) is the mean over all "
        "queries; windowed attention (Swin) is aligned only with align_windows, since the code never adds that term. "
        "Layers whose maps have one shape share a mask",
        "the alignment is of the network's own products, which timm's networks scale by 1/sqrt(d) before and the code "
        "after: it weighs the less for that",
        *HEAD_DEVIATIONS,
    ),
)
