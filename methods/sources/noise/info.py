"""What `noise` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import PSAQ_CODE
from methods.core.options import ImageCount

INFO = PluginInfo(
    name="noise",
    kind="source",
    summary="Gaussian noise in normalised space: the floor of data-free calibration",
    target="methods.sources.noise.source:Noise",
    options=ImageCount,
    partner="minmax",
    paper="PSAQ-ViT (ECCV 2022), mode 1 of its code",
    code=PSAQ_CODE,
)
