"""What SARDFQ's image source says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import PluginInfo
from methods.core.synthesis.options import VariationOptions


class SardfqOptions(VariationOptions):
    """Options of SARDFQ's synthesis. Optimizer and schedule are PSAQ-ViT's, since SARDFQ's are not known."""

    jitter: int = Field(
        0,
        ge=0,
        description="largest roll in the first round, in pixels of a 224-pixel image; priors and regions do not move "
        "with it",
    )
    prior_weight: float = Field(
        1e4,
        ge=0,
        description="weight of the distance to the attention priors, for 14x14 patches (the paper: 1 to 1e5, by model)",
    )
    components: int = Field(5, ge=1, description="most Gaussians in a prior")
    narrowest: float = Field(0.05, gt=0, description="least standard deviation of a Gaussian, in shares of a side")
    widest: float = Field(0.25, gt=0, description="greatest standard deviation of a Gaussian, in shares of a side")
    regions: int = Field(4, ge=0, description="most regions of an image with semantics of their own; 0: none")
    smallest: float = Field(0.5, gt=0, le=1, description="least side of a region, in shares of its cell of the image")
    labels: Literal["soft", "hard"] = Field("soft", description="targets: random soft labels, or one class")
    label_low: float = Field(5.0, description="lower end of the target class's random logit; the others' are in 0 to 1")
    label_high: float = Field(10.0, description="upper end of the same")
    image_label: Literal["own", "all"] = Field(
        "own", description="classes that a whole image's soft label raises: its own, or its regions' too"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        pairs = ((self.narrowest, self.widest), (self.label_low, self.label_high))
        if any(low > high for low, high in pairs):
            raise ValueError("a lower end must not exceed its upper end")
        return self


INFO = PluginInfo(
    name="sardfq",
    kind="source",
    summary="SARDFQ: images whose attention follows random Gaussian mixtures, with several soft-labelled regions each",
    target="methods.sources.sardfq.source:Sardfq",
    requires="methods.core.graph.requirements:attention",
    origin="reconstruction",
    options=SardfqOptions,
    # As many steps as PSAQ-ViT's presets have, so that the two compare at one budget.
    presets={"quick": {"steps": 25}, "default": {"steps": 75}, "paper": {}},
    ablations={
        "no attention priors": {"prior_weight": 0.0},
        "no regions": {"regions": 0},
        "hard labels": {"labels": "hard"},
        "whole images labelled with their regions' classes too": {"image_label": "all"},
        "prior weight 100": {"prior_weight": 100.0},
        "prior weight 1e5": {"prior_weight": 1e5},
        "roll of PSAQ-ViT": {"jitter": 15},
    },
    partner="minmax",
    paper="Zhong et al., Semantic Alignment and Reinforcement for Data-Free Quantization of Vision Transformers, "
    "ICCV 2025 (first published as Semantics Prompting DFQ)",
    code="zysxmu/SARDFQ: not read, nothing taken; formulas from secondary sources",
    deviations=(
        "images only: the paper's block reconstruction, per-channel weights and log2 softmax are calibrators' work",
        "priors: 1 to 5 Gaussians with uniform centres, weights and standard deviations, one prior for each image, "
        "block and head, of the mass that attention gives to patches. Inferred",
        "in windowed attention (Swin) a prior lies on the window's grid, one for each window, and is compared with the "
        "attention averaged over the window's queries. Inferred",
        "with register tokens and no class token, a prior is compared with the first register's attention. Inferred",
        "one prior weight for all models, 1e4 at 14x14 patches, scaled with the square of the number of patches, since "
        "mean squared errors of distributions fall with it (the paper tunes it by model, 1 to 1e5)",
        "regions: an image is cut into 2x2 cells, 1 to 4 of them hold one region each, of 1/2 to the whole of a cell's "
        "side, fixed throughout; bilinear resizing. All regions' losses are averaged and weigh as much as the whole "
        "images' loss. Inferred",
        "the other logits of a soft label are uniform in 0 to 1; a whole image's raises its own class only. Inferred",
        "tasks other than classification have no soft labels: their task loss against random targets",
        "total variation is PSAQ-ViT's, with its random target, of whole images",
        "PSAQ-ViT's Adam and 2 x 500 steps (the paper: Adam, 1,000), without its roll and mirroring, which would move "
        "images under their priors and regions. Inferred",
        "presets quick and default take fewer steps (preset paper: 2 x 500)",
    ),
)
