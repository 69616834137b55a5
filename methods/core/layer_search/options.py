"""Options of the step search and what both of its plugins say of themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import Options


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
        description="steps of a linear layer's weight: one (fused query, key and value: one each), or one per output "
        "channel; a convolution always has one per output channel",
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="smallest candidate step, relative to that of min-max")
    beta: float = Field(1.2, ge=1, description="end of the candidate steps, itself left out")
    candidates: int = Field(100, ge=2, description="candidate steps, linear from alpha to beta")
    rounds: int = Field(3, ge=1, description="alternations between a layer's two factors")
    batch: int = Field(4, ge=1, description="images per pass when inputs and gradients are collected")


PAPER = (
    "Yuan et al., PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform Quantization, ECCV 2022"
)
CODE = "hahnyuan/PTQ4ViT, no licence (formulas re-implemented; nothing taken)"
SHARED = (
    "the scheme says what is quantized: matmul includes the image in 8 bits, which the reference leaves in float",
    "in scheme full a tensor that feeds one layer alone is searched with that layer, and every other one by the same "
    "metric on itself; softmax outputs stay in float there, so that only GELU has a twin quantizer, and queries, keys "
    "and values share one step",
    "weights of linear layers have one step per layer, as in the reference, where the other calibrators have one per "
    "output channel (weights=channel is alike); convolutions have one per output channel (BasePTQ's code: one for all)",
    "with metric=cosine the input of a fused query, key and value is judged by the cosine of each (the reference: "
    "by one over all features)",
    "a round that would repeat the one before it is left out: the result is the same",
    "distances between outputs are the task's (classification: KL), summed over images",
)
