"""What RepQ-ViT's calibrator says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.reparameterization.options import RepqOptions

INFO = PluginInfo(
    name="repq",
    kind="calibrator",
    summary="RepQ-ViT: per-channel LayerNorm ranges reparameterised to per-tensor, log-sqrt2 softmax",
    target="methods.core.reparameterization.calibrator:RepQ",
    requires="methods.core.graph.requirements:sites",
    origin="published code",
    options=RepqOptions,
    presets={"quick": {}, "default": {}, "paper": {}},
    ablations={
        "zero point not rounded": {"round_zero_point": False},
        "median over channels (DopQ-ViT's MOSF)": {"reduction": "median"},
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
        "a layer or module that runs several times in a pass (a head on the levels of a pyramid) has its ranges from "
        "all runs together, seen with rounded weights and activations in float",
        "scheme full is not the paper's: there softmax outputs stay in float and all else has the same quantizers",
    ),
)
