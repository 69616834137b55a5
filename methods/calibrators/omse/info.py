"""What `omse` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import FQVIT_CODE, FQVIT_OBSERVERS, WIDENED
from methods.core.options import WeightOptions

INFO = PluginInfo(
    name="omse",
    kind="calibrator",
    summary="activation ranges of least mean squared error: sets its own clipping, so that images compare fairly",
    target="methods.calibrators.omse.calibrator:OmseCalibrator",
    requires="methods.core.graph.requirements:sites",
    options=WeightOptions,
    partner="real",
    blocks="weights",
    paper=FQVIT_OBSERVERS,
    code=FQVIT_CODE,
    deviations=(
        WIDENED,
        "the error is measured on a histogram of all images (the reference: raw values of the last batch)",
    ),
)
