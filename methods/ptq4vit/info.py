"""What PTQ4ViT and BasePTQ say of themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.plugins import Options, PluginInfo


class SearchOptions(Options):
    """Options of the step search; the defaults are PTQ4ViT's."""

    metric: Literal["hessian", "cosine"] = Field(
        "hessian",
        description="what a layer's output is judged by: squared differences weighed by the squared gradient of the "
        "network's loss, or cosine similarity",
    )
    twin: Literal["partition", "reference", "none"] = Field(
        "partition",
        description="quantizer after softmax and GELU: every value in one of two ranges; the reference code's sum of "
        "both, the split of softmax being chosen with the other factor in float; or a uniform one",
    )
    gelu_step: Literal["aligned", "free"] = Field(
        "aligned",
        description="GELU's positive step: its negative step times a power of two (paper), or any of the candidates "
        "(reference code)",
    )
    gradient: Literal["quantized", "argmax", "reference"] = Field(
        "quantized",
        description="gradient of the Hessian metric: of the distance of a min-max quantized network's output to the "
        "float one's; of the float network's cross-entropy to its own class; or the reference code's, of the float "
        "output's distance to itself, which is round-off",
    )
    weights: Literal["layer", "channel"] = Field(
        "layer",
        description="steps of a linear layer's weight: one (fused query, key and value: one each), or one an output "
        "channel; a convolution always has one an output channel",
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="smallest candidate step, relative to that of min-max")
    beta: float = Field(1.2, ge=1, description="end of the candidate steps, itself left out")
    candidates: int = Field(100, ge=2, description="candidate steps, linear from alpha to beta")
    rounds: int = Field(3, ge=1, description="alternations between a layer's two factors")
    batch: int = Field(4, ge=1, description="images per pass when inputs and gradients are collected")


class BaseOptions(SearchOptions):
    """The same, with BasePTQ's defaults."""

    metric: Literal["hessian", "cosine"] = Field("cosine", description=SearchOptions.model_fields["metric"].description)
    twin: Literal["partition", "reference", "none"] = Field(
        "none", description=SearchOptions.model_fields["twin"].description
    )
    alpha: float = Field(0.5, gt=0, lt=1, description=SearchOptions.model_fields["alpha"].description)
    rounds: int = Field(1, ge=1, description=SearchOptions.model_fields["rounds"].description)


_PAPER = (
    "Yuan et al., PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform Quantization, ECCV 2022"
)
_CODE = "hahnyuan/PTQ4ViT, no licence (formulas re-implemented; nothing taken)"
_SHARED = (
    "the scheme says what is quantized: matmul includes the image in 8 bits, which the reference leaves in float",
    "in scheme full a tensor that feeds one layer alone is searched with that layer, and every other one by the same "
    "metric on itself; softmax outputs stay in float there, so that only GELU has a twin quantizer, and queries, keys "
    "and values share one step",
    "weights of linear layers have one step a layer, as in the reference, where the other calibrators have one an "
    "output channel (weights=channel is alike); convolutions have one an output channel (BasePTQ's code: one for all)",
    "a round that would repeat the one before it is left out: the result is the same",
    "distances between outputs are the task's (classification: KL), summed over images",
)
_TWINS = (
    "softmax's steps are the reference code's 1/(2^(k-1)-1) and that times a power of two, which represent 1 (paper: "
    "1/2^(k-1)); every value is rounded in one range (the code sums both: twin=reference)",
    "the gradient is taken in a min-max quantized network; the reference's, of KL(y, y), is zero but for round-off. An "
    "operation without any gradient is judged by unweighted squared differences",
    "alpha is the reference code's; the paper's 0 has a first candidate without a step",
)

PTQ4VIT = PluginInfo(
    name="ptq4vit",
    kind="calibrator",
    summary="PTQ4ViT: twin uniform quantizers after softmax and GELU, steps searched by a Hessian-guided metric",
    target="methods.ptq4vit.method:StepSearch",
    requires="methods.core.requirements:sites",
    origin="published code",
    options=SearchOptions,
    presets={"quick": {"candidates": 50, "rounds": 1}, "default": {}, "paper": {}},
    ablations={
        "no twin quantizers": {"twin": "none"},
        "twin quantizers as a sum": {"twin": "reference"},
        "free step after GELU": {"gelu_step": "free"},
        "cosine metric": {"metric": "cosine"},
        "gradient of the float network": {"gradient": "argmax"},
        "gradient of the reference code": {"gradient": "reference"},
        "a step per output channel": {"weights": "channel"},
        "1 round": {"rounds": 1},
    },
    partner="real",
    paper=_PAPER,
    code=_CODE,
    deviations=(*_SHARED, *_TWINS, "preset quick takes 50 candidates and 1 round (the reference: 100 and 3)"),
)
BASEPTQ = PluginInfo(
    name="baseptq",
    kind="calibrator",
    summary="BasePTQ, PTQ4ViT's baseline: uniform quantizers, steps searched by the cosine similarity of layer outputs",
    target="methods.ptq4vit.method:StepSearch",
    requires="methods.core.requirements:sites",
    origin="published code",
    options=BaseOptions,
    presets={"quick": {"candidates": 50}, "default": {}, "paper": {}},
    partner="real",
    paper=_PAPER,
    code=_CODE,
    deviations=(
        *_SHARED,
        "the metric is cosine similarity, as published; the reference's driver replaces it by the Hessian-guided one "
        "(metric=hessian)",
        "preset quick takes 50 candidates (the reference: 100)",
    ),
)
