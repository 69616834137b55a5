"""What DopQ-ViT's calibrator says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reparameterization.options import RepqOptions


class DopqvitOptions(RepqOptions):
    """Options of DopQ-ViT: those of RepQ-ViT, whose engine it shares, and those of TanQ."""

    reduction: Literal["mean", "median"] = Field(
        "median", description="the layer's scale and zero point from its channels'; the median is MOSF"
    )
    softmax: Literal["tangent", "log-sqrt2"] = Field(
        "tangent", description="quantizer of softmax outputs: TanQ as rebuilt here, or RepQ-ViT's"
    )
    tangents: tuple[Annotated[float, Field(ge=0, le=2**16)], ...] = Field(
        (0.0, *(2.0**i for i in range(11))),
        description="candidates for TanQ's tan(a), of which 0 is a uniform quantizer; the least squared error of "
        "attention's result wins",
        min_length=1,
    )


INFO = PluginInfo(
    name="dopqvit",
    kind="calibrator",
    summary="DopQ-ViT: median LayerNorm scales (MOSF) and softmax steps that are fine near 0 and 1 (TanQ), no training",
    target="methods.calibrators.dopqvit.calibrator:DopqVit",
    requires="methods.core.graph.requirements:sites",
    origin="reconstruction",
    options=DopqvitOptions,
    presets={"quick": {}, "default": {}, "paper": {}},
    ablations={
        "mean over channels, as RepQ-ViT": {"reduction": "mean"},
        "log-sqrt2 softmax, as RepQ-ViT": {"softmax": "log-sqrt2"},
        "uniform softmax": {"tangents": (0.0,)},
    },
    partner="real",
    paper="Yang et al., DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training Quantization for "
    "Vision Transformers, arXiv 2408.03291, 2024",
    code="none found",
    deviations=(
        "TanQ's formula was not found. Ours has its two known properties, fine steps near 0 and near 1: equal steps of "
        "1/2 + tan(a (2 x - 1)) / (2 tan a). Do not compare its numbers with the paper's",
        "MOSF is the scale of least mean absolute deviation from the other channels', which is their median; so is the "
        "zero point's (inferred)",
        "no block reconstruction follows: its details were not found",
        "tan(a) is chosen for each attention by the squared error of its result, with rounded weights and all other "
        "activations in float (inferred)",
        "all else is RepQ-ViT's, with its deviations (see repq)",
        "scheme full is not the paper's: there softmax outputs stay in float and all else has the same quantizers",
    ),
)
