"""What UQ-ViT's calibrator says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.api.plugins import Options, PluginInfo

_Share = Annotated[float, Field(ge=0, le=1)]


class UqvitOptions(Options):
    """Options of UQ-ViT; the defaults are the reference code's."""

    softmax: Literal["demax", "static"] = Field(
        "demax",
        description="softmax outputs: DeMax, which keeps the largest value of every row in float and gives the others "
        "a step of the row's own, so that a result is unverified and not ranked; or a uniform quantizer of the same "
        "bits whose one step is set on the images, as all other sites have",
    )
    norm_alphas: tuple[_Share, ...] = Field(
        (0.0, 0.05, 0.1, 0.15, 0.2, 0.25),
        description="candidates for the weights' share in NormQuant behind a LayerNorm; the least squared error of the "
        "block's output wins",
        min_length=1,
    )
    alphas: tuple[_Share, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        description="the same for a block's other layers (attention's projection, the MLP's second), beside none at "
        "all; empty leaves those alone",
    )
    percentiles: tuple[Annotated[float, Field(gt=0.5, le=1)], ...] = Field(
        (0.999, 0.9999, 0.99999), description="candidate ends of every range; least squared error wins", min_length=1
    )


_COMPARABLE: dict[str, Any] = {"softmax": "static"}

INFO = PluginInfo(
    name="uqvit",
    kind="calibrator",
    summary="UQ-ViT: channels balanced between activations and weights by each block's output (NormQuant), uniform "
    "quantizers, DeMax for softmax outputs",
    target="methods.calibrators.uqvit.calibrator:UqVit",
    requires="methods.core.graph.requirements:pieces",
    origin="published code",
    options=UqvitOptions,
    presets={"quick": {**_COMPARABLE, "alphas": (0.25, 0.5, 0.75)}, "default": _COMPARABLE, "paper": {}},
    ablations={
        "DeMax (dynamic, one float value a row)": {"softmax": "demax"},
        "static softmax": {"softmax": "static"},
        "no share of the weights": {"norm_alphas": (0.0,), "alphas": ()},
        "LayerNorms' layers alone": {"alphas": ()},
    },
    partner="real",
    paper="UQ-ViT: Harmonizing Extreme Activations with Hardware-Friendly Uniform Quantization in Vision Transformers, "
    "AAAI 2026",
    code="jiujiuwei/UQ-ViT, Apache-2.0 (formulas re-implemented)",
    deviations=(
        "DeMax is dynamic: its steps come from the images that are evaluated, and one value of every row stays in "
        "float, which bits, bit operations and formats do not count. A result with it is marked as unverified and not "
        "ranked; presets quick and default have a static uniform quantizer there (softmax=static)",
        "the common zero point of a LayerNorm's channels is rounded; first ranges are those of one pass over the "
        "network with rounded weights, as RepQ-ViT's (the reference sets them block by block)",
        "while a layer is searched, its whole block is quantized as it is then (the reference: later layers of the "
        "block and softmax outputs in float)",
        "a weight's step for an input channel is from its largest magnitude (the reference: the best percentile)",
        "attention's projection and the MLP's second layer are a block's linear layers behind no LayerNorm; the "
        "division by channel is part of their input's quantizer, and the largest values by channel are those of the "
        "rounded input at every width (the reference: of the float one at 6 bits)",
        "the second layer is searched for any number of images (the reference: from 256 on)",
        "as many images as the source makes (32 unless told otherwise; the reference: 512, e.g. real[images=512])",
        "preset quick takes three candidates for alphas",
        "scheme full is not the paper's: there softmax outputs stay in float, and of the other layers the MLP's second "
        "alone is searched",
    ),
)
