"""What `minmax` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import FQVIT_CODE, FQVIT_OBSERVERS, WIDENED
from methods.core.options import WeightOptions

INFO = PluginInfo(
    name="minmax",
    kind="calibrator",
    summary="activation ranges are the extremes seen in one float pass",
    target="methods.core.range_calibrator:RangeCalibrator",
    requires="methods.core.graph.requirements:sites",
    options=WeightOptions,
    partner="real",
    blocks="all",
    paper=FQVIT_OBSERVERS,
    code=FQVIT_CODE,
    deviations=(WIDENED,),
)
