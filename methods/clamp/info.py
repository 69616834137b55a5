"""What CLAMP-ViT's image source, its search and the whole method say of themselves."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.plugins import Options, PluginInfo
from methods.core.synthesis_options import SynthesisOptions


class SynthesisStage(SynthesisOptions):
    """Stage 1. Optimizer and schedule are PSAQ-ViT's, since CLAMP-ViT's are not known."""

    contrast: Literal["infonce", "log-of-sums"] = Field(
        "infonce", description="form of the patch-contrastive loss: mean over positives of logs, or log of their sum"
    )
    gradient: Literal["float", "quantized", "both"] = Field(
        "float",
        description="branch that the image's gradient takes; the figure draws it through the float one",
    )
    tap: Literal["attention", "block"] = Field(
        "attention", description="whose output patches are contrasted: attention's (a digest) or the block's (figure)"
    )
    temperature: float = Field(0.1, gt=0, description="of the patch-contrastive loss (own choice)")
    neighbourhood: int = Field(3, ge=3, le=9, description="side of the window of neighbours, odd (figure 5d: 3)")
    positives: int = Field(4, ge=1, description="most similar neighbours taken as positives (figure 5d: 4 of 8)")
    colocated: bool = Field(False, description="the float patch at the anchor's own place is a positive too")
    output_weight: float = Field(1.0, ge=0, description="weight of the output loss")
    output_target: Literal["class", "l1"] = Field(
        "class",
        description="output loss: the task loss against random targets, or the mean absolute difference of the float "
        "and the quantized model's outputs",
    )
    tv_weight: float = Field(0.0, ge=0, description="weight of total variation; the method's figure shows none")
    tv_target: float = Field(2750, ge=0, description="its target at 32x3x224x224 (middle of PSAQ-ViT's)")

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.neighbourhood % 2 == 0:
            raise ValueError("neighbourhood must be odd, so that the anchor stands in the middle")
        if self.positives >= self.neighbourhood**2 - 1:
            raise ValueError("positives must be fewer than the neighbours, so that a negative is left")
        return self


class SearchStage(Options):
    """Stage 2."""

    population: int = Field(15, ge=2, description="candidates a layer (Evol-Q's value)")
    passes: int = Field(10, ge=1, description="passes over all layers (figure 5a)")
    cycles: int = Field(6, ge=1, description="evolution cycles a layer and pass (figure 5a)")
    tournament: int = Field(10, ge=1, description="draws of a parent's tournament (Evol-Q's value)")
    crossover: float = Field(0.5, ge=0, le=1, description="probability of blending with a second parent")
    mutation: float = Field(0.03, gt=0, lt=1, description="largest relative change of a scale multiplier")
    spread: float = Field(0.3, ge=0, lt=1, description="initial multipliers reach down to 1 - spread")
    diversity: bool = Field(True, description="each cycle adds a child of a random parent")
    order: Literal["first-to-last", "last-to-first"] = Field(
        "first-to-last", description="order of the layers in a pass (Evol-Q: last to first)"
    )
    local_loss: Literal["infonce", "relational", "cosine", "mse"] = Field(
        "infonce", description="form of the layer-output loss; all but infonce are least where outputs are equal"
    )
    pooling: Literal["tokens", "channels", "none"] = Field("tokens", description="what layer outputs are averaged over")
    search_temperature: float = Field(0.1, gt=0, description="of the layer-output contrastive loss (own choice)")
    output_loss: Literal["candidate", "accept", "none"] = Field(
        "candidate",
        description="where the output loss enters fitness: for every candidate (the paper's figure); once per layer, "
        "when its best gene is accepted (many times cheaper); or nowhere",
    )
    output_distance: Literal["task", "l1"] = Field(
        "task", description="output loss: the task's distance to the float output (classification: KL), or L1"
    )
    ranges: Literal["minmax", "percentile", "omse"] = Field(
        "minmax", description="activation ranges on the images (the published code: minmax)"
    )
    softmax_bits: Literal[8] | None = Field(
        None,
        description="scheme full: 8 also quantizes softmax outputs, which the published code leaves in float (in matmul"
        " they have the activations' bits)",
    )
    widths: tuple[int, ...] = Field(
        (2, 3, 4, 5, 6, 7, 8), description="mixed precision: candidate weight widths", min_length=1
    )
    activation_margin: int = Field(
        2, ge=0, description="mixed precision: activations have the weights' width plus this, at most 8"
    )

    @model_validator(mode="after")
    def _candidates(self) -> Self:
        if list(self.widths) != sorted(set(self.widths)) or not all(2 <= b <= 8 for b in self.widths):
            raise ValueError("widths must rise from 2 to 8 at most")
        return self


class ClampOptions(SynthesisStage, SearchStage):
    """Both stages, alternating."""

    refresh: Literal["pass", "cycles", "never"] = Field(
        "pass",
        description="when images are refreshed: after every pass, after every half of a layer's cycles (the paper's "
        "C/2, read literally), or never",
    )
    refresh_steps: int = Field(20, ge=1, description="synthesis steps of a refresh, from the images at hand")


# One point each that the sources leave open, or that figures and digests tell differently (CLAMP.md, section 6).
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
    "stage 2: layer loss relational": {"local_loss": "relational"},
    "stage 2: layer loss squared error": {"local_loss": "mse"},
    "stage 2: temperature 3": {"search_temperature": 3.0},
    "stage 2: channel pooling": {"pooling": "channels"},
    "stage 2: output loss of every candidate": {"output_loss": "candidate"},
    "stage 2: output loss once a layer": {"output_loss": "accept"},
    "stage 2: no output loss": {"output_loss": "none"},
    "stage 2: population 30": {"population": 30},
    "stage 2: 1 pass": {"passes": 1},
    "stage 2: 8 cycles": {"cycles": 8},
    "stage 2: no crossover": {"crossover": 0.0},
    "stage 2: no diversity step": {"diversity": False},
    "stage 2: last layer first": {"order": "last-to-first"},
    "refresh: never": {"refresh": "never"},
    "refresh: every C/2 cycles, 2 steps": {"refresh": "cycles", "refresh_steps": 2},
    "softmax in 8 bits": {"softmax_bits": 8},
    "OMSE activation ranges": {"ranges": "omse"},
}

_PAPER = "Ramachandran et al., CLAMP-ViT: Contrastive Data-Free Learning for Adaptive PTQ of ViTs, ECCV 2024"
_CODE = "georgia-tech-synergy-lab/CLAMP-ViT (MIT with a non-commercial disclaimer): evaluation only; nothing taken"
_SYNTHESIS = (
    "loss form (multi-positive InfoNCE), temperature, borders, optimizer and step counts are inferred",
    "the output loss is the float model's task loss against random targets, as in PSAQ-ViT (a random class an image; "
    "for dense tasks random boxes or label maps, our own)",
    "the first quantized model has min-max weights, in mixed precision of the budget's whole bits, and float "
    "activations",
    "presets quick and default take 2 x 25 and 2 x 75 synthesis steps (preset paper: 2 x 500, PSAQ-ViT's number)",
)
_SEARCH = (
    "weights are asymmetric min-max with a zero point (the paper's footnote 4), where psaq, noise and real use the "
    "symmetric quantizer of PSAQ-ViT's code (clamp+minmax and minmax.weights=asymmetric separate the two); at 8 bits "
    "too, where the published evaluation code has signed, symmetric weights",
    "ranges are widened to contain 0 (the published code clips the zero point instead)",
    "a gene is a layer's bit-width and one multiplier on its per-channel scales; activation ranges are min-max on the "
    "images",
    "crossover, mutation width, initial spread and the layer-output loss are inferred",
    "presets quick and default rank candidates by their layer's loss, and the output loss of the whole model counts "
    "once, when the best one is accepted (output_loss=accept), for its cost; preset paper has both for every "
    "candidate, as the paper's figure has",
    "presets quick and default make 2 passes (preset paper: 10), quick with a population of 8 and 4 cycles (15 and 6)",
    "mixed precision: the budget bounds the parameter-weighted mean weight width; a child above it is repaired by "
    "taking bits from the layers whose fitness suffers least; activations get min(8, weight width + 2). All inferred",
)
_SHORT: dict[str, object] = {"passes": 2, "output_loss": "accept"}  # a search that a CPU can run

SOURCE = PluginInfo(
    name="clamp",
    kind="source",
    summary="CLAMP-ViT stage 1: patch-contrastive images, anchors from the quantized model",
    target="methods.clamp.synthesis:ClampImages",
    requires="methods.core.requirements:patches",
    origin="reconstruction",
    options=SynthesisStage,
    presets={"quick": {"steps": 25}, "default": {"steps": 75}, "paper": {}},
    partner="minmax",
    paper=_PAPER,
    code=_CODE,
    deviations=_SYNTHESIS,
)
SEARCH = PluginInfo(
    name="clamp-search",
    kind="calibrator",
    summary="CLAMP-ViT stage 2 alone, on any images: layer-wise evolutionary search of scales and bit-widths",
    target="methods.clamp.method:ClampSearch",
    requires="methods.core.requirements:pieces",
    origin="reconstruction",
    options=SearchStage,
    presets={"quick": _SHORT | {"population": 8, "cycles": 4}, "default": _SHORT, "paper": {}},
    partner="clamp",
    mixed=True,
    paper=_PAPER,
    code=_CODE,
    deviations=_SEARCH,
)
METHOD = PluginInfo(
    name="clamp",
    kind="method",
    summary="CLAMP-ViT: patch-contrastive synthesis alternating with layer-wise evolutionary search of scales and "
    "bit-widths",
    target="methods.clamp.method:Clamp",
    requires="methods.core.requirements:patches_and_pieces",
    origin="reconstruction",
    options=ClampOptions,
    presets={
        "quick": _SHORT | {"steps": 25, "refresh_steps": 10, "population": 8, "cycles": 4},
        "default": _SHORT | {"steps": 75, "refresh_steps": 10},
        "paper": {},
    },
    ablations=_ABLATIONS,
    mixed=True,
    paper=_PAPER,
    code=_CODE,
    deviations=(
        *_SYNTHESIS,
        *_SEARCH,
        "images are refreshed once a pass from the images at hand; the paper's cadence (every C/2 cycles) is ambiguous "
        "(option refresh); presets quick and default refresh by 10 steps (preset paper: 20)",
    ),
)
