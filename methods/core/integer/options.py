"""Options of integer arithmetic; the defaults are FQ-ViT's code's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.core.options import PercentileOptions


class FqvitOptions(PercentileOptions):
    """Options of FQ-ViT; the defaults are the reference code's."""

    observer: Literal["minmax", "ema", "percentile", "omse"] = Field(
        "minmax", description="activation ranges; LayerNorm inputs under power-of-two factors always have min-max ones"
    )
    ptf: int = Field(
        3, ge=0, le=8, description="largest exponent of a channel's power-of-two factor; 0 switches the factors off"
    )
    layer_norm: Literal["integer", "float"] = Field("integer", description="arithmetic of LayerNorm (scheme full)")
    softmax: Literal["log-int", "log2", "uniform", "float"] = Field(
        "log-int",
        description="softmax: i-exp and log2 rounding in integers; float softmax with log2 or uniform rounding; float "
        "(scheme matmul, where its output is an operand: log-int means log2, and float means uniform)",
    )
    softmax_bits: int = Field(4, ge=2, le=8, description="bits of softmax outputs in scheme full; matmul has its own")
    log_codes: Literal["2^b", "2^b+1"] = Field(
        "2^b+1", description="values of a log2 quantizer of b bits: zero instead of the smallest power, or besides all"
    )
    exp_step: float | None = Field(
        None,
        gt=0,
        description="coarsest step of attention scores that i-exp takes as it is; codes of a coarser grid are shifted "
        "left first. None never shifts",
    )
