"""What the reconstruction calibrators say of themselves. One engine: they differ in options and presets only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.plugins import Options, PluginInfo


class RoundingOptions(Options):
    """Options that all reconstruction calibrators share. Defaults are the papers'."""

    steps: int = Field(20000, ge=1, description="optimisation steps for a unit (a block, or a layer)")
    batch: int = Field(32, ge=1, description="images a step, drawn without replacement")
    rounding_lr: float = Field(1e-3, gt=0, description="Adam's learning rate of the rounding variables")
    regularization: float = Field(0.01, ge=0, description="weight of the term that drives the rounding to 0 or 1")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps before that term counts")
    beta_start: float = Field(20.0, gt=0, description="the term's exponent right after the warm-up")
    beta_end: float = Field(2.0, gt=0, description="the term's exponent at the last step")
    annealing: Literal["linear", "cosine"] = Field("linear", description="how the exponent goes from start to end")
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


class AdaroundOptions(RoundingOptions):
    """Options of AdaRound."""

    steps: int = Field(10000, ge=1, description="optimisation steps for a unit (a block, or a layer)")
    annealing: Literal["linear", "cosine"] = Field("cosine", description="how the exponent goes from start to end")
    weight_norm: float = Field(2.0, gt=0, description="exponent of that error")
    unit: Literal["layer", "block"] = Field(
        "layer",
        description="what is reconstructed at a time: a layer with the activation function behind it, or a block",
    )
    activations: Literal["float", "quantized"] = Field(
        "float", description="activations while the rounding is learned; they are quantized afterwards in any case"
    )


class LossOptions(RoundingOptions):
    """Options of block-wise reconstruction with a choice of loss."""

    loss: Literal["mse", "fisher", "hessian", "low-rank"] = Field(
        "mse",
        description="distance of block outputs: squared error; weighted by squared gradients of the output loss "
        "(BRECQ); by the average perturbation Hessian (APHQ); or low-rank plus diagonal Fisher (FIMA-Q)",
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


class BrecqOptions(LossOptions):
    """Options of BRECQ: rounding first, with activations in float, then activation scales."""

    loss: Literal["mse", "fisher", "hessian", "low-rank"] = Field(
        "fisher", description="distance of block outputs while the rounding is learned (see qdrop)"
    )
    scale_steps: int = Field(5000, ge=0, description="steps of the second stage for a unit; 0: scales stay as observed")
    scale_inputs: Literal["quantized", "float", "mixed"] = Field(
        "float", description="the same as `inputs`, of the second stage (the released code: float)"
    )
    scale_norm: float = Field(2.4, gt=0, description="power of the second stage's error (the released code: 2.4)")
    scale_lr: float = Field(4e-4, gt=0, description="Adam's learning rate of the activation scales")
    scale_units: Literal["absolute", "relative"] = Field(
        "absolute", description="whether that rate is in the scale's own units or relative to its start"
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


class AphqOptions(DropOptions):
    """Options of APHQ-ViT's second part."""

    loss: Literal["mse", "fisher", "hessian", "low-rank"] = Field("hessian", description="see qdrop")
    temperature: float = Field(20.0, gt=0, description="of the softmax in the output loss of classifiers")


class FimaqOptions(DropOptions):
    """Options of FIMA-Q."""

    loss: Literal["mse", "fisher", "hessian", "low-rank"] = Field("low-rank", description="see qdrop")
    temperature: float = Field(20.0, gt=0, description="of the softmax in the output loss of classifiers")


def _presets(**options: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """Presets from options' values in `quick` and `default`; `paper` is the options' own defaults.

    Few steps need larger ones: a rounding variable has about 5 to go from one neighbour to the other.
    """
    options = {"rounding_lr": (5e-2, 2e-2), **options}
    quick, default = ({name: values[i] for name, values in options.items()} for i in (0, 1))
    return {"quick": quick, "default": default, "paper": {}}


_RELATIVE: dict[str, Any] = {"scale_units": "relative", "scale_lr": 5e-3}


def _with_scales(presets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**values, **_RELATIVE} if values else values for name, values in presets.items()}


_SHARED = (
    "units are stem, transformer blocks, downsamplings and the tail with the head, found from the data flow; first and "
    "last layer have the same bits as the others",
    "as many images as the source makes (32 unless told otherwise; the papers: 1,024, e.g. real[images=1024])",
    "the squared error is summed over channels and averaged over images and tokens, so that the regularizer's weight "
    "means the same for every shape",
    "presets quick and default take few steps with larger learning rates; only `paper` has the published ones",
)
_VIT = "the published method is for convolutional networks; on transformers every number is somebody's port"
_SCALES = "presets quick and default learn activation scales at a rate relative to their start"
_ENDS = (
    "softmax outputs have a uniform quantizer; activations are per tensor (the reference code: per head or channel, "
    "with LayerNorm outputs reparameterised as in RepQ-ViT)"
)

_HEAD = (
    "a classifier's tail is learned under KL of the logits, as in the reference (of APHQ-ViT scaled to start at 2, of "
    "FIMA-Q as it is); outputs that are no logits (of detectors and segmentors) keep the blocks' loss there"
)

ADAROUND = PluginInfo(
    name="adaround",
    kind="calibrator",
    summary="AdaRound: trains whether each weight is rounded up or down, layer by layer",
    target="methods.recon.method:Adaround",
    requires="methods.core.requirements:pieces",
    origin="published code",
    options=AdaroundOptions,
    presets=_presets(steps=(50, 250)),
    ablations={
        "block by block": {"unit": "block"},
        "activations quantized while learning": {"activations": "quantized"},
        "float inputs": {"inputs": "float"},
        "no regularizer": {"regularization": 0.0},
    },
    partner="real",
    trains="quantizers",
    paper="Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020",
    code="no code by the authors; formulas as restated by BRECQ",
    deviations=(
        *_SHARED,
        _VIT,
        "steps, learning rate and cosine annealing are from memory of the paper, not checked against a text",
    ),
)
BRECQ = PluginInfo(
    name="brecq",
    kind="calibrator",
    summary="BRECQ: trains rounding block by block under a Fisher-weighted error, then activation scales",
    target="methods.recon.method:Brecq",
    requires="methods.core.requirements:pieces",
    origin="published code",
    options=BrecqOptions,
    presets=_with_scales(_presets(steps=(50, 150), scale_steps=(25, 50))),
    ablations={
        "unweighted squared error": {"loss": "mse"},
        "activation scales not learned": {"scale_steps": 0},
        "float inputs": {"inputs": "float"},
    },
    partner="real",
    trains="quantizers",
    paper="Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021",
    code="yhhhli/BRECQ, MIT (formulas re-implemented)",
    deviations=(
        *_SHARED,
        _VIT,
        _SCALES,
        "squared gradients, the paper's (the released code: those of |g| + 1), are normalised to mean 1 over a unit's "
        "outputs; they are of the distance between the float output and that with all units up to this one quantized, "
        "since without labels the gradient is 0 at the float model itself",
    ),
)
_QDROP: dict[str, dict[str, Any]] = {
    "nothing dropped, quantized inputs": {"drop": 0.0, "inputs": "quantized"},
    "nothing dropped": {"drop": 0.0},
    "activation scales not learned": {"scale_lr": 0.0},
    "BRECQ's Fisher weights": {"loss": "fisher"},
}
QDROP = PluginInfo(
    name="qdrop",
    kind="calibrator",
    summary="QDrop: trains rounding and activation scales block by block, activation quantization dropped at random",
    target="methods.recon.method:Qdrop",
    requires="methods.core.requirements:pieces",
    origin="published code",
    options=DropOptions,
    presets=_with_scales(_presets(steps=(50, 150))),
    ablations=_QDROP,
    partner="real",
    trains="quantizers",
    paper="Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, "
    "ICLR 2022",
    code="wimh966/QDrop, no licence (formulas only, no code read)",
    deviations=(*_SHARED, _VIT, _SCALES),
)
APHQ = PluginInfo(
    name="aphq",
    kind="calibrator",
    summary="APHQ-ViT's reconstruction: trains as QDrop, under the average perturbation Hessian",
    target="methods.recon.method:Qdrop",
    requires="methods.core.requirements:pieces",
    origin="published code",
    options=AphqOptions,
    presets=_with_scales(_presets(steps=(50, 150))),
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
        *_SHARED,
        _SCALES,
        _ENDS,
        "without MLP reconstruction, which replaces GELU by ReLU and so quantizes another network",
        "the perturbation is 1e-2 (the reference: 1e-6, of which float32 keeps about one digit beside outputs near 1)",
        "its signs are random (the reference adds the same to all channels, `perturbed=ones`: LayerNorms remove that, "
        "and the gradients' difference is rounding error)",
        _HEAD,
    ),
)
FIMAQ = PluginInfo(
    name="fimaq",
    kind="calibrator",
    summary="FIMA-Q: trains as QDrop, under a low-rank plus diagonal Fisher information matrix",
    target="methods.recon.method:Qdrop",
    requires="methods.core.requirements:pieces",
    origin="published code",
    options=FimaqOptions,
    presets=_with_scales(_presets(steps=(50, 150))),
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
        *_SHARED,
        _SCALES,
        _ENDS,
        "the inner matrix gets a pseudo-inverse (the reference: a plain inverse, of a matrix close to singular)",
        "differences and gradients of the Fisher's factors are measured on quantized inputs, nothing dropped (the "
        "released code: on float inputs, with drop)",
        _HEAD,
    ),
)
