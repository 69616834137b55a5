"""What `real` says of itself."""

from __future__ import annotations

from harness.api.plugins import PluginInfo
from methods.core.citations import PSAQ_CODE
from methods.core.options import ImageCount

INFO = PluginInfo(
    name="real",
    kind="source",
    summary="real training images, without labels: not data-free, the ceiling of image sources",
    target="methods.sources.real.source:Real",
    data="images",
    options=ImageCount,
    partner="minmax",
    paper="PSAQ-ViT (ECCV 2022), mode 2 of its code",
    code=PSAQ_CODE,
    deviations=("images are drawn per repetition by seed (the reference takes the first shuffled batch)",),
)
