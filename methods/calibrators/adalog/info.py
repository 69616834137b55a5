"""What AdaLog's calibrator says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import Options, PluginInfo


class AdalogOptions(Options):
    """Options of AdaLog; the defaults are the paper's but for the code of zero (see deviations)."""

    rounds: int = Field(3, ge=1, description="rounds of searching a layer's one factor, then the other")
    steps: int = Field(6, ge=0, description="refinements of the progressive combining search")
    keep: int = Field(16, ge=1, description="best pairs of scale and zero point that are refined further")
    keep_log: int = Field(32, ge=1, description="best pairs of base and scale that are refined further")
    tokens: int | None = Field(
        None, ge=1, description="about how many rows of a layer's input its search looks at; none: all of them"
    )
    per_head: bool = Field(True, description="queries, keys and values have a quantizer for each attention head")
    zero_code: Literal["reserved", "extra"] = Field(
        "reserved",
        description="values too small for a code become 0: the last of the 2^bits codes stands for it, or one more "
        "than 2^bits (the reference code)",
    )


INFO = PluginInfo(
    name="adalog",
    kind="calibrator",
    summary="AdaLog: adaptive-base logarithmic softmax and GELU outputs, ranges searched by layer output error",
    target="methods.calibrators.adalog.calibrator:AdaLogSearch",
    requires="methods.core.graph.requirements:products",
    schemes=("matmul",),
    origin="published code",
    options=AdalogOptions,
    presets={
        "quick": {"rounds": 1, "steps": 2, "tokens": 256},
        "default": {"rounds": 1, "steps": 4, "tokens": 512},
        "paper": {},
    },
    ablations={
        "quantizers per tensor, not per head": {"per_head": False},
        "no refinement": {"steps": 0},
        "an extra code for zero": {"zero_code": "extra"},
    },
    partner="real",
    paper="Wu et al., AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer, "
    "ECCV 2024",
    code="GoatWu/AdaLog, Apache-2.0 (formulas re-implemented); its optional retraining is not part of this",
    deviations=(
        "zero takes the last of the 2^b codes of logarithmic quantizers (the reference: 2^b codes and zero; "
        "zero_code=extra)",
        "coarse zero points span all codes (the reference: 8 to either side of the middle, which at 8 bits is little)",
        "the search starts from the percentile of least squared error and never gives it up for a worse one; the shape "
        "of its neighbourhoods is our own",
        "the shift of GELU outputs is undone with the rounded weights, so that it cancels exactly in the next layer; "
        "outputs of other functions with a known least value (QuickGELU, SiLU, Mish, Hardswish, ReLU) have their own "
        "shift, those of any other function a uniform quantizer",
        "errors come from Gram matrices and an orthogonal factor of the weight: the reference's values but for a "
        "constant, with fewer operations",
        "presets quick and default search in one round, with fewer refinements and on some rows of a layer's input; "
        "paper takes 3 rounds, 6 refinements and all rows",
        "LayerNorms are paired with linear layers as in repq, by data flow; one that cannot be moved exactly stays "
        "per-tensor",
        "scheme matmul only: in full most tensors are not factors of a product, so there is no output to search by",
    ),
)
