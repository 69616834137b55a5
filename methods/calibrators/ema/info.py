"""What `ema` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import BATCHED, FQVIT_CODE, FQVIT_OBSERVERS, WIDENED
from methods.core.options import EmaOptions

INFO = PluginInfo(
    name="ema",
    kind="calibrator",
    summary="exponential moving average of the extremes of batches",
    target="methods.calibrators.ema.calibrator:Ema",
    requires="methods.core.graph.requirements:sites",
    options=EmaOptions,
    partner="real",
    blocks="weights",
    paper=FQVIT_OBSERVERS,
    code=FQVIT_CODE,
    presets={"paper": {"batch": 100}},
    deviations=(WIDENED, BATCHED),
)
