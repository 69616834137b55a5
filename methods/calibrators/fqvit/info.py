"""What FQ-ViT's calibrator says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.integer.options import FqvitOptions

_CORRECT = {"log_codes": "2^b", "exp_step": 2**-5}

INFO = PluginInfo(
    name="fqvit",
    kind="calibrator",
    summary="FQ-ViT: power-of-two factors per channel for LayerNorm inputs, log2 softmax, integer LayerNorm",
    target="methods.core.integer.calibrator:FqVit",
    requires="methods.core.graph.requirements:sites",
    origin="published code",
    options=FqvitOptions,
    presets={"quick": _CORRECT, "default": _CORRECT, "paper": {"batch": 100}},
    ablations={
        "without power-of-two factors": {"ptf": 0},
        "float LayerNorm": {"layer_norm": "float"},
        "float i-exp": {"softmax": "log2"},
        "uniform softmax of 8 bits": {"softmax": "uniform", "softmax_bits": 8},
        "float softmax, as the other methods": {"softmax": "float"},
    },
    partner="real",
    paper="Lin et al., FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer, IJCAI 2022",
    code="megvii-research/FQ-ViT, Apache-2.0 (formulas re-implemented)",
    deviations=(
        "in scheme full softmax outputs are quantized too, which the scheme leaves in float for the other methods; "
        "softmax=float makes the sites equal",
        "activation ranges are widened to contain 0 (the reference clips the zero point instead)",
        "power-of-two factors minimise the error over all calibration images (the reference: over the last batch)",
        "presets quick and default have batches of 4 images (preset paper and the reference: 100)",
        "presets quick and default count zero among the 2^b values of the log2 quantizer and shift codes of scores "
        "coarser than 1/32 before i-exp, whose integer ln 2 and polynomial vanish on coarse grids (W4A4); preset paper "
        "does neither, but keeps the largest exponential of a row from rounding to zero",
        "integers are emulated in floating point: i-exp and LayerNorm's sums in double, which holds them exactly; "
        "scores on a grid finer than 2^-10 are rounded to that one, so that it does",
        "integer LayerNorm needs an input that is one quantized tensor, integer softmax scores on one grid; elsewhere "
        "(a learned scale per head) the arithmetic stays in float",
        "the image is quantized for every model (the reference leaves it in float for ViT)",
        "the LayerNorm of Swin's patch embedding has power-of-two factors as all others (the reference: a plain range)",
        "what comes behind softmax is calibrated through float softmax (the reference: on its last batch, which alone "
        "sets ranges, through the integer one)",
        "in scheme matmul only min-max ranges and the log2 quantizer are left: LayerNorm and scores are float there",
    ),
)
