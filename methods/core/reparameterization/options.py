"""Options of the reparameterization, the defaults being RepQ-ViT's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.api.plugins import Options


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
        "mean", description="the layer's scale and zero point from its channels'; the median is DopQ-ViT's MOSF"
    )
    round_zero_point: bool = Field(
        True, description="round the layer's zero point; the reference code does not, which makes codes fractional"
    )
    zero_code: Literal["reserved", "extra"] = Field(
        "reserved",
        description="softmax values too small for a code become 0: the last of the 2^bits codes stands for it, or one "
        "more than 2^bits (the reference code)",
    )
