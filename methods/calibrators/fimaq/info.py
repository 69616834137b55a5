"""What `fimaq` says of itself."""

from __future__ import annotations

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import ENDS, HEAD, SCALES, SHARED, DropOptions, LossName, presets, with_scales


class FimaqOptions(DropOptions):
    """Options of FIMA-Q."""

    loss: LossName = Field("low-rank", description="see qdrop")
    temperature: float = Field(20.0, gt=0, description="of the softmax in the output loss of classifiers")


INFO = PluginInfo(
    name="fimaq",
    kind="calibrator",
    summary="FIMA-Q: trains as QDrop, under a low-rank plus diagonal Fisher information matrix",
    target="methods.core.reconstruction.calibrator:Joint",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=FimaqOptions,
    presets=with_scales(presets(steps=(50, 150))),
    ablations={
        "secant form of the low-rank part": {"low_rank": "secant"},
        "rank 1": {"refreshes": 1},
        "unweighted squared error": {"loss": "mse"},
        "BRECQ's Fisher weights": {"loss": "fisher"},
    },
    partner="real",
    trains="quantizers",
    paper="Wu et al., FIMA-Q: Post-Training Quantization for Vision Transformers by Fisher Information Matrix "
    "Approximation, CVPR 2025",
    code="ShiheWang/FIMA-Q, Apache-2.0 (formulas re-implemented)",
    deviations=(
        *SHARED,
        SCALES,
        ENDS,
        "the inner matrix gets a pseudo-inverse (the reference: a plain inverse, of a matrix close to singular)",
        "differences and gradients of the Fisher's factors are measured on quantized inputs, nothing dropped (the "
        "released code: on float inputs, with drop)",
        HEAD,
    ),
)
