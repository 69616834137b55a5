"""Options of image synthesis, apart from its code so that plugins can be listed without importing torch."""

from __future__ import annotations

from pydantic import Field

from methods.baselines_info import ImageCount


class SynthesisOptions(ImageCount):
    """Options that PSAQ-ViT's and CLAMP-ViT's image synthesis share; the defaults are PSAQ-ViT's code's."""

    rounds: int = Field(2, ge=1, description="restarts of the learning-rate schedule; jitter grows with each")
    steps: int = Field(500, ge=1, description="optimisation steps a round")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of a round with linearly rising learning rate")
    lr: float | None = Field(
        None,
        gt=0,
        description="Adam learning rate; if left out PSAQ-ViT's: 0.25 for windowed attention (Swin), else 0.20",
    )
    jitter: int = Field(15, ge=0, description="largest roll in the first round, in pixels of a 224-pixel image")
