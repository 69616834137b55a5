"""What CLAMP-ViT says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.calibrators.clamp_search.info import QUICK, SEARCH, SHORT, SearchStage
from methods.core.citations import CLAMP, CLAMP_CODE
from methods.sources.clamp.info import SYNTHESIS, SynthesisStage


class ClampOptions(SynthesisStage, SearchStage):
    """Both stages, alternating."""

    refresh: Literal["pass", "cycles", "never"] = Field(
        "pass",
        description="when images are refreshed: after every pass, after every half of a layer's cycles (the paper's "
        "C/2, read literally), or never",
    )
    refresh_steps: int = Field(20, ge=1, description="synthesis steps of a refresh, from the images at hand")
    held_out: Literal["none", "noise", "psaq", "clamp", "both"] = Field(
        "psaq",
        description="ours, no source says it: the search's result is kept only if its output is nearer to the float "
        "model's than before the search, on held-out synthetic images of this source and another seed; both: on those "
        "of psaq and on those of clamp; none: it is kept whatever it is",
    )
    held_out_steps: int = Field(75, ge=1, description="synthesis steps per round of the held-out images")


# The figure's loss between layer outputs, as it is drawn.
_LITERAL: dict[str, object] = {"local_loss": "infonce", "search_temperature": 0.1}
# One point each that the sources leave open, or that figures and digests tell differently.
_ABLATIONS: dict[str, dict[str, object]] = {
    "stage 1: log of sums": {"contrast": "log-of-sums"},
    "stage 1: co-located positive": {"colocated": True},
    "stage 1: gradient through both branches": {"gradient": "both"},
    "stage 1: block outputs": {"tap": "block"},
    "stage 1: temperature 1": {"temperature": 1.0},
    "stage 1: 2 positives": {"positives": 2},
    "stage 1: 5x5 neighbourhood, 12 positives": {"neighbourhood": 5, "positives": 12},
    "stage 1: no output loss": {"output_weight": 0.0},
    "stage 1: total variation 0.05": {"tv_weight": 0.05},
    "both stages: L1 output loss": {"output_target": "l1", "output_distance": "l1"},
    "stage 2: layer loss InfoNCE": _LITERAL,
    "stage 2: layer loss InfoNCE, result always kept": _LITERAL | {"held_out": "none"},
    "stage 2: InfoNCE, temperature 3": _LITERAL | {"search_temperature": 3.0},
    "stage 2: InfoNCE, anchors of both models": _LITERAL | {"anchors": "both"},
    "stage 2: InfoNCE, anchors of the float model": _LITERAL | {"anchors": "float"},
    "stage 2: InfoNCE, negatives of both models": _LITERAL | {"negatives": "both"},
    "stage 2: InfoNCE, centred features": _LITERAL | {"centred": True},
    "stage 2: layer loss squared error": {"local_loss": "mse"},
    "stage 2: temperature 0.1": {"search_temperature": 0.1},
    "stage 2: centred features": {"centred": True},
    "stage 2: channel pooling": {"pooling": "channels"},
    "stage 2: output loss of every candidate": {"output_loss": "candidate"},
    "stage 2: output loss once per layer": {"output_loss": "accept"},
    "stage 2: no output loss": {"output_loss": "none"},
    "stage 2: population 30": {"population": 30},
    "stage 2: 1 pass": {"passes": 1},
    "stage 2: 8 cycles": {"cycles": 8},
    "stage 2: no crossover": {"crossover": 0.0},
    "stage 2: no diversity step": {"diversity": False},
    "stage 2: last layer first": {"order": "last-to-first"},
    "stage 2: own and later layers' outputs": {"local_scope": "later"},
    "stage 2: layer loss x 0.1": {"local_weight": 0.1},
    "stage 2: each layer by itself": {"search": "layer"},
    "stage 2: network": {"search": "network"},
    "stage 2: network, as drawn": {
        **_LITERAL,
        "search": "network",
        "anchors": "both",
        "negatives": "both",
        "local_outputs": "blocks",
    },
    "stage 2: network, block outputs alone": {"search": "network", "local_outputs": "blocks"},
    "stage 2: network, exchange of the same layer": {"search": "network", "exchange": "aligned"},
    "stage 2: network, exchange of 4 pairs": {"search": "network", "exchanged": 4},
    "stage 2: network, 1 mutated cell": {"search": "network", "mutated": 1},
    "stage 2: network, no crossover": {"search": "network", "crossover": 0.0},
    "stage 2: network, no diversity step": {"search": "network", "diversity": False},
    "stage 2: network, no output loss": {"search": "network", "output_loss": "none"},
    "refresh: never": {"refresh": "never"},
    "refresh: every C/2 cycles, 2 steps": {"refresh": "cycles", "refresh_steps": 2},
    "result of the search always kept": {"held_out": "none"},
    "result of the search judged on noise": {"held_out": "noise"},
    "result of the search judged by two sources": {"held_out": "both"},
    "softmax in 8 bits": {"softmax_bits": 8},
    "OMSE activation ranges": {"ranges": "omse"},
}

INFO = PluginInfo(
    name="clamp",
    kind="method",
    summary="CLAMP-ViT: patch-contrastive synthesis alternating with layer-wise evolutionary search of scales and "
    "bit-widths",
    target="methods.end_to_end.clamp.method:Clamp",
    requires="methods.core.graph.requirements:patches_and_pieces",
    origin="reconstruction",
    options=ClampOptions,
    presets={
        "quick": QUICK | {"steps": 25, "refresh_steps": 10, "held_out_steps": 25},
        "default": SHORT | {"steps": 75, "refresh_steps": 10},
        "paper": {},
    },
    ablations=_ABLATIONS,
    mixed=True,
    paper=CLAMP,
    code=CLAMP_CODE,
    deviations=(
        *SYNTHESIS,
        *SEARCH,
        "images are refreshed once per pass from the images at hand; the paper's cadence (every C/2 cycles) is "
        "ambiguous (option refresh); presets quick and default refresh by 10 steps (preset paper: 20)",
        "never worse than its start, which is ours: the search's result is kept only if it lowers the distance of "
        "quantized from float output on held-out synthetic images (PSAQ-ViT's, another seed), else the model is left "
        "as it was before the search (held_out=none keeps it always)",
    ),
)
