"""What plugins of other packages may import of `methods`: the shared substrate, by names that stay.

Everything else in `methods` is an implementation detail and may move in any release. `docs/add-a-method.md` shows how
these are used.
"""

from __future__ import annotations

from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, tap
from methods.core.graph.layers import LAYERS, output_axis
from methods.core.graph.sites import ActivationSite, NoSitesError, Sites, WeightSite, find_sites
from methods.core.graph.structure import Block, NotATransformerError, find_blocks, patch_grid, to_grid
from methods.core.graph.trace import Trace, trace
from methods.core.microscaling import activations_in_formats, weights_in_formats
from methods.core.numerics.granularity import PER_TENSOR, PerBlock, PerChannel, PerGroup, PerHead
from methods.core.numerics.observers import Ema, MinMax, Observer, Omse
from methods.core.numerics.quantizers import Quantizer, Uniform, weight_quantizer
from methods.core.quantized import Quantized
from methods.core.synthesis.descent import start_images

__all__ = [
    "LAYERS",
    "OUTPUT",
    "PER_TENSOR",
    "ActivationSite",
    "Block",
    "Ema",
    "Interceptor",
    "MinMax",
    "NoSitesError",
    "NotATransformerError",
    "Observer",
    "Omse",
    "OpKey",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerHead",
    "Quantized",
    "Quantizer",
    "Sites",
    "Trace",
    "Uniform",
    "WeightSite",
    "activation_quantizers",
    "activations_in_formats",
    "find_blocks",
    "find_sites",
    "observe",
    "output_axis",
    "patch_grid",
    "start_images",
    "tap",
    "to_grid",
    "trace",
    "weight_quantizer",
    "weight_quantizers",
    "weights_in_formats",
]
