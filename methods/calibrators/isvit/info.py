"""What I&S-ViT's calibrator says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.api.plugins import Options, PluginInfo

_Percentiles = tuple[Annotated[float, Field(gt=0.5, le=1)], ...]


class IsvitOptions(Options):
    """Options of I&S-ViT; the defaults are the paper's as far as they are known (see deviations)."""

    softmax: Literal["shift-log2", "uniform"] = Field(
        "shift-log2", description="quantizer of softmax outputs: the paper's SULQ, or a uniform one"
    )
    sulq_codes: Literal["2^b", "2^b+1"] = Field(
        "2^b", description="codes of SULQ: as many as the bits hold, or one more, as the reference code quantizes with"
    )
    shifts: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0),
        description="candidates for SULQ's shift; least squared error wins",
        min_length=1,
    )
    smooth: bool = Field(
        True,
        description="the three stages; without them LayerNorm's scales are merged and weights rounded before anything "
        "is tuned, and only the last stage runs",
    )
    steps: int = Field(1000, ge=1, description="optimisation steps for a unit (a block) in each of stages 1 and 3")
    wide_steps: int = Field(200, ge=1, description="the same where weights have 6 or more bits")
    batch: int = Field(64, ge=1, description="images per step, drawn without replacement")
    lr: float = Field(4e-5, gt=0, description="Adam's learning rate of the weights, cosine to 0")
    inputs: Literal["quantized", "float", "mixed"] = Field(
        "quantized", description="input of a unit in stage 3; stage 1 has the float model's"
    )
    range_images: int = Field(64, ge=1, description="images, of all, that the quantizers' ranges are taken from")
    percentiles: _Percentiles = Field(
        (0.999, 0.9999, 0.99999),
        description="candidate ends of activation ranges; least squared error wins",
        min_length=1,
    )
    weight_percentiles: _Percentiles = Field(
        (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999),
        description="the same for weights (the released code's)",
        min_length=1,
    )


def _preset(steps: int, lr: float) -> dict[str, Any]:
    return {"steps": steps, "wide_steps": steps, "batch": 32, "lr": lr}


INFO = PluginInfo(
    name="isvit",
    kind="calibrator",
    summary="I&S-ViT: trains weights by blocks, before and after LayerNorm ranges are merged; shifted log2 softmax",
    target="methods.calibrators.isvit.calibrator:Isvit",
    requires="methods.core.graph.requirements:pieces",
    origin="published code",
    options=IsvitOptions,
    presets={"quick": _preset(25, 5e-4), "default": _preset(75, 3e-4), "paper": {}},
    ablations={
        "uniform softmax": {"softmax": "uniform"},
        "2^b + 1 codes for softmax": {"sulq_codes": "2^b+1"},
        "without the three stages": {"smooth": False},
        "float inputs": {"inputs": "float"},
    },
    partner="real",
    trains="weights",
    paper="Zhong et al., I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs "
    "Quantization, IEEE TPAMI 2025",
    code="zysxmu/IaS-ViT, no licence (formulas only)",
    deviations=(
        "weights themselves are trained, on the calibration images and without labels",
        "softmax: 2^b codes with a step to match, and a rounded zero point (the reference code: 2^b + 1 in its forward "
        "pass, sulq_codes=2^b+1, but the shift chosen for 2^b, and a grid that begins at the least logarithm)",
        "LayerNorm's per-channel ranges are merged as in RepQ-ViT with a rounded zero point (see repq)",
        "inferred: the units are stem, blocks, downsamplings and tail; weights of linear layers and convolutions are "
        "trained, biases and LayerNorms are not; first ranges are found one after the other, each on inputs quantized "
        "so far and float weights; a weight's grid is set on what stage 1 left, after the merging",
        "biases stay as they are (the released code trains them and Swin's position biases, with stochastic depth on "
        "where the network has it), and the norm before a downsampling is per channel "
        "first and merged, too (the released code: those of blocks alone); convolutions' inputs are quantized (there: "
        "float)",
        "as many images as the source makes (32 unless told otherwise; the paper: 1,024, e.g. real[images=1024])",
        "presets quick and default take few steps with larger learning rates; only `paper` has the published ones",
        "scheme full is not the paper's: there softmax outputs stay in float and all else has the same quantizers",
    ),
)
