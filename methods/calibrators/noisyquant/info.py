"""What NoisyQuant's calibrator says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.options import WeightOptions


class NoisyquantOptions(WeightOptions):
    """Options of NoisyQuant; the numbers of candidates are the reference code's."""

    noise: Literal["uniform", "gaussian", "shifted-gaussian"] = Field(
        "uniform", description="the noise u in n * u: uniform on [-1, 1] (paper); 2 z; or 2 z - 1 (code), z normal"
    )
    ranges: int = Field(2000, ge=1, description="candidate noise ranges n, evenly from 0 up to `widest` steps")
    widest: float = Field(2.0, gt=0, description="end of the candidate noise ranges, in steps of the layer's input")
    means: int = Field(400, ge=0, description="candidate offsets of the noise, evenly within half a step; 0: none")
    clips: int = Field(1000, ge=0, description="candidate shares of the input's min-max range, up to 1; 0: all of it")
    rows: int = Field(4096, ge=1, description="tokens of a layer's input on which its output error is measured")


INFO = PluginInfo(
    name="noisyquant",
    kind="calibrator",
    summary="NoisyQuant: a fixed noise before rounding a linear layer's input, taken out by the bias",
    target="methods.calibrators.noisyquant.calibrator:NoisyQuant",
    requires="methods.core.graph.requirements:sites",
    schemes=("matmul",),
    origin="published code",
    options=NoisyquantOptions,
    presets={
        "quick": {"ranges": 20, "means": 0, "clips": 20, "rows": 256},
        "default": {"ranges": 100, "means": 20, "clips": 100, "rows": 512},
        "paper": {},
    },
    ablations={
        "without noise": {"ranges": 1, "means": 0},
        "without offset": {"means": 0},
        "without clipping": {"clips": 0},
        "the code's noise": {"noise": "shifted-gaussian"},
    },
    partner="real",
    paper="Liu et al., NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision Transformers, "
    "CVPR 2023",
    code="kriskrisliu/NoisyQuant, MIT (formulas re-implemented)",
    deviations=(
        "on min-max quantizers (NoisyQuant-Linear); the paper's best numbers are on PTQ4ViT's",
        "candidates are counted in steps of the layer's input, offsets within half a step, as in the released code",
        "clipping, range and offset are searched in this order, each once (the released code: offset before range); "
        "doing nothing is always a candidate",
        "the search takes float inputs and compares with the layer of float weights (the released code: rounded "
        "weights in both, and inputs from the layers quantized before)",
        "activations are asymmetric, and symmetric weights have a half-integer divisor (the released code: both "
        "symmetric with 2^(b-1) - 1)",
        "the output error is measured on `rows` tokens spread over all images (the reference: 256 images)",
        "the head has noise too, attention's products have min-max quantizers (the reference leaves both in float)",
        "presets quick and default have fewer candidates and tokens",
    ),
)
