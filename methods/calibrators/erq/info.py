"""What ERQ's calibrator says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reparameterization.options import RepqOptions


class ErqOptions(RepqOptions):
    """Options of ERQ: those of RepQ-ViT, which it starts from, and those of its regressions."""

    activation_regression: bool = Field(True, description="Aqer: regress activations' errors into the float weights")
    weight_regression: bool = Field(
        True, description="Wqer: round half of a layer's columns at a time and regress the error into the others"
    )
    refinements: int = Field(
        100, ge=0, description="most roundings that Wqer flips in an output channel and half; 0: none"
    )
    ridge: float = Field(1000.0, gt=0, description="lambda of both regressions (reference: 1000 by its README's call)")
    head_ridge: float = Field(
        0.1, gt=0, description="lambda of layers whose input is one vector per image (our reading of the reference)"
    )
    ridge_units: Literal["absolute", "relative"] = Field(
        "absolute",
        description="whether lambda is added as it is to the sums of products over all tokens, or as that share of "
        "their mean diagonal, so that it means the same for every number of images (own addition)",
    )


_RELATIVE: dict[str, Any] = {"ridge_units": "relative", "ridge": 0.1, "head_ridge": 0.1}

INFO = PluginInfo(
    name="erq",
    kind="calibrator",
    summary="ERQ: RepQ-ViT, then weights changed by ridge regression and refined rounding (closed form, not trained)",
    target="methods.calibrators.erq.calibrator:Erq",
    requires="methods.core.graph.requirements:pieces",
    origin="published code",
    options=ErqOptions,
    presets={"quick": _RELATIVE, "default": _RELATIVE, "paper": {}},
    ablations={
        "without activation regression (Aqer)": {"activation_regression": False},
        "without weight regression (Wqer)": {"weight_regression": False},
        "without rounding refinement": {"refinements": 0},
    },
    partner="real",
    paper="Zhong et al., ERQ: Error Reduction for Post-Training Quantization of Vision Transformers, ICML 2024",
    code="zysxmu/ERQ, no licence (formulas only)",
    deviations=(
        "weights are changed by closed-form regression on the images; nothing descends a gradient and no label is used",
        "on RepQ-ViT's quantizers as they are here (see repq): zero points are rounded, and the layer behind Swin's "
        "downsampling norm is reparameterised too (the reference leaves it out)",
        "inferred: activation quantizers stay as RepQ-ViT's pass sets them; a weight's grid is set anew after Aqer and "
        "stays during Wqer; columns are halved in their order; the first half is quantized first",
        "inferred: biases take part in both regressions as the weight of an input that is 1, penalised like the "
        "others, and stay in float; a layer without a bias of its own gets none",
        "linear layers only; convolutions (patch embedding) keep RepQ-ViT's rounding (the released code, of the "
        "journal's extension, gives the patch embedding Wqer's regression without refinement, and leaves the image in "
        "float)",
        "rounding refinement flips a weight as long as the proxy falls (the released code: if the proxy's derivative "
        "exceeds half a step, until the proxy rises)",
        "layers follow each other, each on inputs from all before it as they are then, as the paper has it (the "
        "released code: all on float inputs behind the layer's own quantizer, ranges from float weights)",
        "a weight has one grid for each output channel, found as RepQ-ViT's (the released code: two for q, k, v and an "
        "MLP's first layer, as many input channels as a twentieth of the output channels having their own, and ten "
        "candidate ranges from the 97 % percentile up)",
        "head_ridge serves both regressions (the released code: Aqer's alone, lambda in Wqer)",
        "as many images as the source makes (32 unless told otherwise, as in the reference's README; its code's "
        "default is 1,024, with lambda 2000)",
        "presets quick and default have lambda relative to the inputs' size",
    ),
)
