"""What PSAQ-ViT's image source says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.api.plugins import LATER, PluginInfo
from methods.core.citations import OUTPUT_ERROR
from methods.core.synthesis.options import PsaqOptions


class PsaqSourceOptions(PsaqOptions):
    """Options of PSAQ-ViT's source: the form of its class loss on top."""

    output_target: Annotated[Literal["class", "mae"], LATER] = Field(
        "class", description="class loss: the task's against random targets, or OuroMamba's mean absolute error to them"
    )


INFO = PluginInfo(
    name="psaq",
    kind="source",
    summary="PSAQ-ViT: images of high patch-similarity entropy, random classes, bounded total variation",
    target="methods.sources.psaq.source:Psaq",
    requires="methods.core.graph.requirements:blocks",
    origin="published code",
    options=PsaqSourceOptions,
    presets={"quick": {"steps": 25}, "default": {"steps": 75}, "paper": {}},
    partner="minmax",
    paper="Li et al., Patch Similarity Aware Data-Free Quantization for Vision Transformers, ECCV 2022",
    code="zkkli/PSAQ-ViT, Apache-2.0 (formulas re-implemented)",
    deviations=(
        "total-variation target and jitter are scaled from 224x224 RGB to the model's image size",
        "patch similarities by a Gram product and the density point by point: same value and gradient, less memory",
        "similarities leave out the first token, as in the reference, which without a class token is a patch, and keep "
        "register tokens; blocks that see a single patch are left out",
        "presets quick and default take fewer steps than the reference's 2 x 500 (preset paper)",
        OUTPUT_ERROR,
    ),
)
