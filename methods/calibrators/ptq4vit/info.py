"""What `ptq4vit` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.layer_search.options import CODE, PAPER, SHARED, SearchOptions

_TWINS = (
    "softmax's steps are the reference code's 1/(2^(k-1)-1) and that times a power of two, which represent 1 (paper: "
    "1/2^(k-1)); every value is rounded in one range (the code sums both: twin=reference)",
    "the gradient is taken in a min-max quantized network; the reference's, of KL(y, y), is zero but for round-off. An "
    "operation without any gradient is judged by unweighted squared differences",
    "the twin quantizer for GELU is behind every activation function with a known least value, however it is written "
    "(GELU's two forms, QuickGELU, SiLU, Mish, Hardswish): its negative range is that value's, whatever the images. "
    "Behind any other function the quantizer is uniform",
    "alpha is the reference code's; the paper's 0 has a first candidate without a step",
)

INFO = PluginInfo(
    name="ptq4vit",
    kind="calibrator",
    summary="PTQ4ViT: twin uniform quantizers after softmax and GELU, steps searched by a Hessian-guided metric",
    target="methods.core.layer_search.calibrator:StepSearch",
    requires="methods.core.graph.requirements:products",
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
    paper=PAPER,
    code=CODE,
    deviations=(*SHARED, *_TWINS, "preset quick takes 50 candidates and 1 round (the reference: 100 and 3)"),
)
