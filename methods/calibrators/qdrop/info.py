"""What `qdrop` says of itself."""

from __future__ import annotations

from typing import Any

from harness.api.plugins import PluginInfo
from methods.core.reconstruction.options import SCALES, SHARED, VIT, DropOptions, presets, with_scales

_ABLATIONS: dict[str, dict[str, Any]] = {
    "nothing dropped, quantized inputs": {"drop": 0.0, "inputs": "quantized"},
    "nothing dropped": {"drop": 0.0},
    "activation scales not learned": {"scale_lr": 0.0},
    "BRECQ's Fisher weights": {"loss": "fisher"},
}
INFO = PluginInfo(
    name="qdrop",
    kind="calibrator",
    summary="QDrop: trains rounding and activation scales block by block, activation quantization dropped at random",
    target="methods.core.reconstruction.calibrator:Joint",
    requires="methods.core.graph.requirements:units",
    origin="published code",
    options=DropOptions,
    presets=with_scales(presets(steps=(50, 150))),
    ablations=_ABLATIONS,
    partner="real",
    trains="quantizers",
    paper="Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, "
    "ICLR 2022",
    code="wimh966/QDrop, no licence (formulas only, no code read)",
    deviations=(*SHARED, VIT, SCALES),
)
