"""What `percentile` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import BATCHED, FQVIT_CODE, FQVIT_OBSERVERS, WIDENED
from methods.core.options import PercentileOptions

INFO = PluginInfo(
    name="percentile",
    kind="calibrator",
    summary="moving average of the 0.99999 quantiles of batches",
    target="methods.calibrators.percentile.calibrator:Percentile",
    requires="methods.core.graph.requirements:sites",
    options=PercentileOptions,
    partner="real",
    blocks="weights",
    paper=FQVIT_OBSERVERS,
    code=FQVIT_CODE,
    presets={"paper": {"batch": 100}},
    deviations=(WIDENED, BATCHED),
)
