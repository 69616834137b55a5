"""What `glfq` says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import WalkOptions


class GlfqOptions(WalkOptions):
    """Options of GLF-Q; the defaults are the paper's as far as it says them (see deviations)."""

    loss: Literal["global-local", "global", "local"] = Field(
        "global-local",
        description="squared error of the last features, behind the float rest of the network, and of the block's own "
        "output, each divided by its first value; or one of the two",
    )
    local: float = Field(2.0, gt=0, description="weight of the second term; the first has 1")
    mlp: Literal["relu", "gelu"] = Field(
        "relu",
        description="relu: GELUs of MLPs become ReLUs, whose layers are trained for it in float first, so that another "
        "network is quantized; gelu: the network as it is",
    )
    mlp_steps: int = Field(20000, ge=1, description="mlp=relu: optimisation steps for an MLP")
    mlp_lr: float = Field(
        4e-5, gt=0, description="mlp=relu: Adam's learning rate of its weights and biases, cosine to 0"
    )
    mlp_clipped: float = Field(2.0, ge=0, description="mlp=relu: weight of the error with the hidden values clipped")
    mlp_quantile: float = Field(
        0.99, gt=0, le=1, description="mlp=relu: of the float model's positive hidden values, where they are clipped"
    )
    steps: int = Field(3000, ge=1, description="optimisation steps for a unit (a block)")
    weight_lr: float = Field(2e-5, gt=0, description="Adam's learning rate of the weights, cosine to 0")
    scale_lr: float = Field(2e-4, ge=0, description="Adam's learning rate of the activation scales, cosine to 0")
    scale_units: Literal["absolute", "relative"] = Field(
        "absolute", description="whether that rate is in the scale's own units or relative to its start"
    )


def _preset(steps: int, lr: float) -> dict[str, Any]:
    return {"mlp": "gelu", "steps": steps, "weight_lr": lr, "scale_lr": 5e-3, "scale_units": "relative"}


INFO = PluginInfo(
    name="glfq",
    kind="calibrator",
    summary="GLF-Q: trains weights and scales by blocks for the features in front of the classifier",
    target="methods.calibrators.glfq.calibrator:Glfq",
    requires="methods.core.graph.requirements:pieces",
    origin="reconstruction",
    options=GlfqOptions,
    presets={
        "quick": _preset(25, 5e-4),
        "default": _preset(75, 3e-4),
        "paper": {"weight_ranges": "minmax", "activation_ranges": "minmax"},
    },
    ablations={
        "the block's own output alone": {"loss": "local"},
        "the last features alone": {"loss": "global"},
        "GELUs stay": {"mlp": "gelu"},
        "activation scales not learned": {"scale_lr": 0.0},
    },
    partner="real",
    trains="weights",
    paper="Sun et al., GLF-Q: Global-Local Feature-Based Quantization for Vision Transformers, 2026",
    code="none released (formulas from the paper)",
    deviations=(
        "weights themselves are trained, on the calibration images and without labels",
        "the rotations are a transform of their own, which any calibrator can be run behind: the whole method is "
        "real[images=1024]+rotate+glfq in preset paper",
        "presets quick and default keep GELU, start from ranges of least error as the other reconstructions here, and "
        "take few steps with larger learning rates; only `paper` has the published ones (ranges: its appendix)",
        "as many images as the source makes (32 unless told otherwise; the paper: 1,024, e.g. real[images=1024])",
        "mlp=relu: a GELU module that is used elsewhere too, or between layers that are, stays, and so does one that "
        "is no module (records say where)",
        "without the LayerNorm reparameterization that the paper adds on Swin",
        "inferred: learning rates fall to 0 along half a cosine; the weights' grids and the zero points stay as first "
        "found; stem, downsamplings and the tail with the head are trained "
        "as blocks are, the tail for its own output, since no features are behind it; MLPs are trained in batches of "
        "as many images as blocks",
        "detectors and segmentors: the network's outputs stand for the features of boxes, and all parts are trained",
    ),
)
