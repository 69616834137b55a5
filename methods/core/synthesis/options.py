"""Options of image synthesis, apart from its code so that plugins can be listed without importing torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import LATER
from methods.core.options import ImageCount


class SynthesisOptions(ImageCount):
    """Options that PSAQ-ViT's and CLAMP-ViT's image synthesis share; the defaults are PSAQ-ViT's code's."""

    rounds: int = Field(2, ge=1, description="restarts of the learning-rate schedule; jitter grows with each")
    steps: int = Field(500, ge=1, description="optimisation steps per round")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of a round with linearly rising learning rate")
    lr: float | None = Field(
        None,
        gt=0,
        description="Adam learning rate; if left out PSAQ-ViT's: 0.25 for windowed attention (Swin), else 0.20",
    )
    jitter: int = Field(15, ge=0, description="largest roll in the first round, in pixels of a 224-pixel image")
    low_pass: Annotated[float | None, LATER] = Field(
        None,
        gt=0,
        description="finished images go through SynQ's Gaussian low-pass filter: its D_0, in cycles across the image "
        "(the paper shows 40 at 224 pixels and 8 at 32); if left out, none",
    )


class VariationOptions(SynthesisOptions):
    """PSAQ-ViT's total-variation term on top: near a target drawn once for all images."""

    tv_weight: float = Field(0.05, ge=0, description="weight of the total-variation term")
    tv_low: float = Field(2500, ge=0, description="lower end of the random total-variation target, at 32x3x224x224")
    tv_high: float = Field(3000, ge=0, description="upper end of the same")

    @model_validator(mode="after")
    def _target_ordered(self) -> Self:
        if self.tv_low > self.tv_high:
            raise ValueError(f"tv_low, {self.tv_low:g}, must not exceed tv_high, {self.tv_high:g}")
        return self


class PsaqOptions(VariationOptions):
    """Options of PSAQ-ViT's synthesis; the defaults are the reference code's."""

    bandwidth: float = Field(0.01, gt=0, description="kernel bandwidth of the similarity density")
    grid: int = Field(10, ge=2, description="points at which the density is evaluated")
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy to random classes")


class HeadOptions(SynthesisOptions):
    """Options of MimiQ's synthesis and of what descends from it; the defaults are those of MaskAQ's released code,
    which is built on MimiQ's.
    """

    rounds: int = Field(1, ge=1, description="restarts of the learning-rate schedule")
    steps: int = Field(2000, ge=1, description="optimisation steps per round")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of a round with linearly rising learning rate")
    lr: float = Field(0.1, gt=0, description="AdamW learning rate")
    lr_floor: float = Field(0.01, ge=0, le=1, description="share of the learning rate that the cosine ends at")
    weight_decay: float = Field(1e-6, ge=0, description="AdamW weight decay")
    jitter: int = Field(
        8,
        ge=0,
        description="largest roll in the first half of the steps, in pixels of a 224-pixel image; twice as many after",
    )
    noise: float = Field(
        0.5, ge=0, description="standard deviation of every channel's random offset at first; it falls to 0"
    )
    colour: float = Field(
        1.0, ge=0, description="largest random shift, and change of the logarithm of contrast, of every channel"
    )
    similarity_weight: float = Field(1.0, ge=0, description="weight of the heads' dissimilarity")
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy to random classes")
    tv_weight: float = Field(2.5e-5, ge=0, description="weight of total variation, of a batch of 16x3x224x224")
    maps: Literal["products", "softmax"] = Field(
        "products", description="attention maps that are compared: of queries times keys, or after softmax"
    )


def check_window(side: int, positives: int) -> None:
    """Check a window of patches around an anchor.

    Raises:
        ValueError: no anchor stands in its middle, or no negative is left.
    """
    if side % 2 == 0:
        raise ValueError("neighbourhood must be odd, so that the anchor stands in the middle")
    if positives >= side**2 - 1:
        raise ValueError("positives must be fewer than the neighbours, so that a negative is left")
