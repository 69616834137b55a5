"""What `aphq` says of itself."""

from __future__ import annotations

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import ENDS, HEAD, SCALES, SHARED, DropOptions, LossName, presets, with_scales


class AphqOptions(DropOptions):
    """Options of APHQ-ViT's second part."""

    loss: LossName = Field("hessian", description="see qdrop")
    temperature: float = Field(20.0, gt=0, description="of the softmax in the output loss of classifiers")


INFO = PluginInfo(
    name="aphq",
    kind="calibrator",
    summary="APHQ-ViT's reconstruction: trains as QDrop, under the average perturbation Hessian",
    target="methods.core.reconstruction.calibrator:Joint",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=AphqOptions,
    presets=with_scales(presets(steps=(50, 150))),
    ablations={
        "all values perturbed alike": {"perturbed": "ones"},
        "unweighted squared error": {"loss": "mse"},
        "BRECQ's Fisher weights": {"loss": "fisher"},
    },
    partner="real",
    trains="quantizers",
    paper="Wu et al., APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for "
    "Vision Transformers, CVPR 2025",
    code="GoatWu/APHQ-ViT, Apache-2.0 (formulas re-implemented)",
    deviations=(
        *SHARED,
        SCALES,
        ENDS,
        "without MLP reconstruction, which replaces GELU by ReLU and so quantizes another network",
        "the perturbation is 1e-2 (the reference: 1e-6, of which float32 keeps about one digit beside outputs near 1)",
        "its signs are random (the reference adds the same to all channels, `perturbed=ones`: LayerNorms remove that, "
        "and the gradients' difference is rounding error)",
        HEAD,
    ),
)
