"""What MPTQ-ViT's calibrator says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import Options, PluginInfo


class MptqOptions(Options):
    """Options of MPTQ-ViT as rebuilt here."""

    smooth: bool = Field(
        True, description="SQ-b: shift and scale the channels behind each LayerNorm, and undo it in the layers behind"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="smooth: exponent of the activations' range (SmoothQuant's 0.5)")
    regions: Literal["both", "gelu", "none"] = Field(
        "both",
        description="tensors with two regions of steps whose ratio is a power of two (OPT-m): what GELU and softmax "
        "give, what GELU gives, or none",
    )
    ranges: Literal["minmax", "percentile", "omse"] = Field(
        "omse", description="all other activations' ranges on the images"
    )
    weights: Literal["symmetric", "asymmetric"] = Field(
        "asymmetric", description="per-channel min-max weight quantizer"
    )
    widths: tuple[int, ...] = Field(
        (2, 3, 4, 5, 6, 7, 8), description="mixed precision: candidate weight widths", min_length=1
    )
    activation_margin: int = Field(
        2, ge=0, description="mixed precision: activations have the weights' width plus this, at most 8"
    )
    refresh: Literal["lazy", "all"] = Field(
        "lazy",
        description="mixed precision: before a layer is lowered, measure anew the one that looks cheapest until one "
        "stays so, or all layers",
    )
    evaluations: int | None = Field(
        None,
        ge=0,
        description="mixed precision: most measurements of the whole model beyond one for every layer; from then on "
        "the last known ones decide. None: as many as it takes",
    )
    batch: int = Field(32, ge=1, description="images per calibration batch")

    @model_validator(mode="after")
    def _candidates(self) -> Self:
        if list(self.widths) != sorted(set(self.widths)) or not all(2 <= b <= 8 for b in self.widths):
            raise ValueError("widths must rise from 2 to 8 at most")
        return self


INFO = PluginInfo(
    name="mptq",
    kind="calibrator",
    summary="MPTQ-ViT: smoothing with a shift (SQ-b), step ratios behind GELU from data (OPT-m), greedy bit-widths",
    target="methods.calibrators.mptq.calibrator:Mptq",
    requires="methods.core.graph.requirements:sites",
    origin="reconstruction",
    options=MptqOptions,
    presets={"quick": {}, "default": {}, "paper": {}},
    ablations={
        "without smoothing": {"smooth": False},
        "without two regions": {"regions": "none"},
        "greedy widths alone, on the quantizers of clamp-search": {
            "smooth": False,
            "regions": "none",
            "ranges": "minmax",
        },
        "widths by one measurement of every layer": {"evaluations": 0},
    },
    partner="real",
    mixed=True,
    paper="Tai and Wu, MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer, arXiv 2401.14895, "
    "2024",
    code="none found",
    deviations=(
        "only the ideas of its three parts were found, no formula and no table: all forms below are inferred, and its "
        "numbers are not to be quoted as the paper's",
        "SQ-b: the middle of a channel's range is taken off, and the scale is SmoothQuant's with exponent 0.5; both "
        "are folded into LayerNorm and the layers behind it, so that the float network stays the same function",
        "OPT-m: PTQ4ViT's two regions behind GELU with a ratio of 2^m, m from 0 to bits + 2 by squared error; the "
        "negative step depends on the bits alone. Softmax has its twin quantizer, the split chosen likewise",
        "QuickGELU, SiLU, Mish and Hardswish have two regions as GELU does, from their own least values; behind any "
        "other activation function the quantizer is uniform",
        "Greedy MP is data-free: it lowers by one the width of the layer that adds least to the model's distance from "
        "the float output per bit that is saved (the paper: accuracy and compressibility), beginning at 8 bits",
        "the budget bounds the parameter-weighted mean weight width, and activations get min(8, weight width + 2), as "
        "in clamp-search: activations have no widths of their own",
        "weights are min-max per channel; other activations have OMSE ranges",
    ),
)
