"""What `baseptq` says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.layer_search.options import CODE, PAPER, SHARED, SearchOptions


class BaseOptions(SearchOptions):
    """The same, with BasePTQ's defaults."""

    metric: Literal["hessian", "cosine"] = Field("cosine", description=SearchOptions.model_fields["metric"].description)
    twin: Literal["partition", "reference", "none"] = Field(
        "none", description=SearchOptions.model_fields["twin"].description
    )
    alpha: float = Field(0.5, gt=0, lt=1, description=SearchOptions.model_fields["alpha"].description)
    rounds: int = Field(1, ge=1, description=SearchOptions.model_fields["rounds"].description)


INFO = PluginInfo(
    name="baseptq",
    kind="calibrator",
    summary="BasePTQ, PTQ4ViT's baseline: uniform quantizers, steps searched by the cosine similarity of layer outputs",
    target="methods.core.layer_search.calibrator:StepSearch",
    requires="methods.core.graph.requirements:products",
    origin="published code",
    options=BaseOptions,
    presets={"quick": {"candidates": 50}, "default": {}, "paper": {}},
    partner="real",
    paper=PAPER,
    code=CODE,
    deviations=(
        *SHARED,
        "the metric is cosine similarity, as published; the reference's driver replaces it by the Hessian-guided one "
        "(metric=hessian)",
        "preset quick takes 50 candidates (the reference: 100)",
    ),
)
