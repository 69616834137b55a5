"""What RepQ-ViT's calibrator says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.plugins import Options, PluginInfo


class RepqOptions(Options):
    """Options of RepQ-ViT; the defaults are the paper's but for the forms that give no integers (see deviations)."""

    percentiles: tuple[Annotated[float, Field(gt=0.5, le=1)], ...] = Field(
        (0.999, 0.9999, 0.99999), description="candidate ends of every range; least squared error wins", min_length=1
    )
    layer_norms: Literal["reparameterized", "per-channel", "per-tensor"] = Field(
        "reparameterized",
        description="inputs of linear layers that come from a LayerNorm: per channel, then made per-tensor by "
        "reparameterisation; left per channel (the upper bound, no longer a per-tensor scheme); or per-tensor at once",
    )
    reduction: Literal["mean", "median"] = Field(
        "mean", description="the layer's scale and zero point from its channels'"
    )
    round_zero_point: bool = Field(
        True, description="round the layer's zero point; the reference code does not, which makes codes fractional"
    )
    zero_code: Literal["reserved", "extra"] = Field(
        "reserved",
        description="softmax values too small for a code become 0: the last of the 2^bits codes stands for it, or one "
        "more than 2^bits (the reference code)",
    )


CALIBRATOR = PluginInfo(
    name="repq",
    kind="calibrator",
    summary="RepQ-ViT: per-channel LayerNorm ranges reparameterised to per-tensor, log-sqrt2 softmax",
    target="methods.repq.method:RepQ",
    requires="methods.core.requirements:sites",
    origin="published code",
    options=RepqOptions,
    presets={"quick": {}, "default": {}, "paper": {}},
    ablations={
        "zero point not rounded": {"round_zero_point": False},
        "median over channels": {"reduction": "median"},
        "per-channel LayerNorm outputs, not reparameterised": {"layer_norms": "per-channel"},
        "per-tensor LayerNorm outputs": {"layer_norms": "per-tensor"},
        "softmax with an extra code for zero": {"zero_code": "extra"},
    },
    partner="real",
    paper="Li et al., RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers, "
    "ICCV 2023",
    code="zkkli/RepQ-ViT, Apache-2.0 (formulas re-implemented)",
    deviations=(
        "the layer's zero point is rounded and clipped to the codes, so that the transformation changes nothing "
        "(the reference: the mean itself, up to 2^b + 1 fractional codes; round_zero_point=false)",
        "softmax: zero takes the last of the 2^b codes (the reference: 2^b codes and zero; zero_code=extra)",
        "per-tensor activation ranges are widened to contain 0 (the reference leaves the zero point unclipped)",
        "LayerNorms are paired with linear layers by data flow, values and modules, not by name; one whose output is "
        "padded, scaled, partly dropped or used elsewhere too stays per-tensor (so does the classifier behind a class "
        "token, as in the reference)",
        "scheme full is not the paper's: there softmax outputs stay in float and all else has the same quantizers",
    ),
)
