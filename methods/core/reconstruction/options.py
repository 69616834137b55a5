"""Options, presets and deviations of the reconstruction calibrators: one engine, they differ in these only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.api.plugins import Options

LossName = Literal["mse", "fisher", "hessian", "low-rank", "least-squares"]


class WalkOptions(Options):
    """Options that all reconstruction calibrators share. Defaults are the papers'."""

    steps: int = Field(20000, ge=1, description="optimisation steps for a unit (a block, or a layer)")
    batch: int = Field(32, ge=1, description="images per step, drawn without replacement")
    inputs: Literal["quantized", "float", "mixed"] = Field(
        "quantized",
        description="input of a unit: from the units as quantized so far, from the float model, or a random half of "
        "the values from each",
    )
    weights: Literal["symmetric", "asymmetric"] = Field("asymmetric", description="per-channel weight grid")
    weight_ranges: Literal["minmax", "error"] = Field(
        "error", description="ends of the weight grid: extremes, or extremes shrunk to the least rounding error"
    )
    weight_norm: float = Field(2.4, gt=0, description="exponent of that error")
    activation_ranges: Literal["minmax", "percentile", "omse"] = Field(
        "omse", description="observer that gives the activations' ranges, on the float model"
    )


class RoundingOptions(WalkOptions):
    """Options of those that learn whether weights are rounded up or down."""

    rounding_lr: float = Field(1e-3, gt=0, description="Adam's learning rate of the rounding variables")
    regularization: float = Field(0.01, ge=0, description="weight of the term that drives the rounding to 0 or 1")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps before that term counts")
    beta_start: float = Field(20.0, gt=0, description="the term's exponent right after the warm-up")
    beta_end: float = Field(2.0, gt=0, description="the term's exponent at the last step")
    annealing: Literal["linear", "cosine"] = Field("linear", description="how the exponent goes from start to end")


class LossOptions(RoundingOptions):
    """Options of block-wise reconstruction with a choice of loss."""

    loss: LossName = Field(
        "mse",
        description="distance of block outputs: squared error; weighted by squared gradients of the output loss "
        "(BRECQ); by the average perturbation Hessian (APHQ); low-rank plus diagonal Fisher (FIMA-Q); or rank one plus "
        "diagonal by least squares (LS-ViT)",
    )
    temperature: float = Field(1.0, gt=0, description="of the softmax in the output loss of classifiers")
    perturbation: float = Field(1e-2, gt=0, description="loss=hessian: what is added to and taken from block outputs")
    perturbed: Literal["signs", "ones"] = Field(
        "signs",
        description="loss=hessian: direction of that: 1 or -1 at random for every value, or 1 for all as in the "
        "released code, which every LayerNorm behind takes away, so that what is left is rounding error",
    )
    refreshes: int = Field(5, ge=1, description="loss=low-rank: rows of the Fisher's factors, taken evenly in training")
    low_rank: Literal["code", "secant"] = Field(
        "code", description="loss=low-rank: inner matrix DDᵀ as in the released code, or DGᵀ, which has the right units"
    )


class DropOptions(LossOptions):
    """Options of QDrop: rounding and activation scales together, with activation quantization dropped at random."""

    inputs: Literal["quantized", "float", "mixed"] = Field(
        "mixed", description="input of a unit: quantized so far, float, or a random half of the values from each"
    )
    drop: float = Field(0.5, ge=0, le=1, description="share of activation values left in float, anew in every step")
    scale_lr: float = Field(4e-5, ge=0, description="Adam's learning rate of the activation scales, cosine to 0")
    scale_units: Literal["absolute", "relative"] = Field(
        "absolute", description="whether that rate is in the scale's own units or relative to its start"
    )


def presets(**options: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """Presets from options' values in `quick` and `default`; `paper` is the options' own defaults.

    Few steps need larger ones: a rounding variable has about 5 to go from one neighbour to the other.
    """
    options = {"rounding_lr": (5e-2, 2e-2), **options}
    quick, default = ({name: values[i] for name, values in options.items()} for i in (0, 1))
    return {"quick": quick, "default": default, "paper": {}}


_RELATIVE: dict[str, Any] = {"scale_units": "relative", "scale_lr": 5e-3}


def with_scales(presets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same presets, whose activation scales are learned at a rate relative to their start."""
    return {name: {**values, **_RELATIVE} if values else values for name, values in presets.items()}


SHARED = (
    "units are stem, transformer blocks, downsamplings and the tail with the head, found from the data flow; first and "
    "last layer have the same bits as the others",
    "as many images as the source makes (32 unless told otherwise; the papers: 1,024, e.g. real[images=1024])",
    "the squared error is summed over channels and averaged over images and tokens, so that the regularizer's weight "
    "means the same for every shape",
    "presets quick and default take few steps with larger learning rates; only `paper` has the published ones",
)
VIT = "the published method is for convolutional networks; on transformers every number is somebody's port"
SCALES = "presets quick and default learn activation scales at a rate relative to their start"
ENDS = (
    "softmax outputs have a uniform quantizer; activations are per tensor (the reference code: per head or channel, "
    "with LayerNorm outputs reparameterised as in RepQ-ViT)"
)

HEAD = (
    "a classifier's tail is learned under KL of the logits, as in the reference (of APHQ-ViT scaled to start at 2, of "
    "FIMA-Q as it is); outputs that are not logits (of detectors and segmentors) keep the blocks' loss there"
)
