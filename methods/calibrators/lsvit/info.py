"""What `lsvit` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import SCALES, SHARED, DropOptions, LossName, presets, with_scales


class LsvitOptions(DropOptions):
    """Options of LS-ViT."""

    loss: LossName = Field("least-squares", description="see qdrop")
    temperature: float = Field(20.0, gt=0, description="of the softmax in the output loss of classifiers")
    rank_one: Literal["printed", "aligned"] = Field(
        "aligned",
        description="loss=least-squares: its rank-one part as printed, where images that quantization moves to "
        "opposite sides cancel, or with their gradients turned to one side first",
    )


INFO = PluginInfo(
    name="lsvit",
    kind="calibrator",
    summary="LS-ViT: trains as QDrop, under a diagonal plus rank-one form fitted to the output loss by least squares",
    target="methods.calibrators.lsvit.calibrator:Lsvit",
    requires="methods.core.graph.requirements:units",
    origin="reconstruction",
    options=LsvitOptions,
    presets=with_scales(presets(steps=(50, 150))),
    ablations={
        "rank-one part as printed": {"rank_one": "printed"},
        "unweighted squared error": {"loss": "mse"},
        "FIMA-Q's low-rank Fisher matrix": {"loss": "low-rank"},
    },
    partner="real",
    trains="quantizers",
    paper="Hwang et al., LS-ViT: Least-Squares Hessian Based Block Reconstruction for Low-Bit Post-Training "
    "Quantization of Vision Transformers, CVPR 2026",
    code="hhh7748/LS-ViT, not read (formulas from a digest of the paper)",
    deviations=(
        *SHARED,
        SCALES,
        "neither paper nor code was read: the loss is from a digest of the paper, the walk is QDrop's with the "
        "settings that the digest names",
        "gradients in the rank-one part are turned to one side (as printed, images that differ in sign cancel; "
        "rank_one=printed)",
        "inferred: the output loss is KL to the float output at temperature 20, as in FIMA-Q; products of gradient "
        "and difference below 0 and negative diagonal values are 0; the form's first value is scaled to 2, since its "
        "weight against the rounding's regularizer is not given; a classifier's tail is learned under KL of the "
        "logits, scaled alike, and outputs that are not logits keep the blocks' loss",
    ),
)
