"""What CLAMP-ViT's search says of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api.plugins import Options, PluginInfo
from methods.core.citations import CLAMP, CLAMP_CODE


class SearchStage(Options):
    """Stage 2."""

    search: Literal["layer", "network"] = Field(
        "network",
        description="what a candidate is: the widths and multipliers of all layers with one fitness, as the method's "
        "figure draws it (what a figure leaves open is our reconstruction), which is also the reading that comes "
        "nearest to the float model on held-out synthetic images (docs/clamp.md); or one layer's, each layer with a "
        "population and a fitness of its own (presets quick and default, for its cost)",
    )
    population: int = Field(15, ge=2, description="candidates, per layer or (search=network) in all (Evol-Q's value)")
    passes: int = Field(10, ge=1, description="passes over all layers (figure 5a)")
    cycles: int = Field(6, ge=1, description="evolution cycles per layer and pass (figure 5a)")
    tournament: int = Field(10, ge=1, description="draws of a parent's tournament (Evol-Q's value)")
    crossover: float = Field(
        0.5,
        ge=0,
        le=1,
        description="probability of blending with a second parent, or (search=network) of exchanging cells with it",
    )
    exchange: Literal["across", "aligned"] = Field(
        "across",
        description="search=network: cells are exchanged between any layers, widths for widths and multipliers for "
        "multipliers (the figure), or of the same layer",
    )
    exchanged: int = Field(
        1, ge=1, description="search=network: pairs of cells of a kind that a crossover exchanges (drawn: 1)"
    )
    mutated: int = Field(
        3, ge=1, description="search=network: cells that a mutation replaces, one of the selected layer's (drawn: 3)"
    )
    mutation: float = Field(0.03, gt=0, lt=1, description="largest relative change of a scale multiplier")
    spread: float = Field(0.3, ge=0, lt=1, description="initial multipliers reach down to 1 - spread")
    diversity: bool = Field(
        True,
        description="each cycle adds a child of a random parent, or (search=network) two by mixing a child with the "
        "candidate least like it (that two are mixed: the figure; which: inferred)",
    )
    order: Literal["first-to-last", "last-to-first"] = Field(
        "first-to-last", description="order of the layers in a pass (Evol-Q: last to first)"
    )
    local_loss: Literal["infonce", "relational", "cosine", "mse"] = Field(
        "relational",
        description="form of the layer-output loss; all but infonce, which is the method's figure read literally, are "
        "least where outputs are equal; chosen by held-out synthetic images (docs/clamp.md)",
    )
    local_scope: Literal["own", "later"] = Field(
        "own",
        description="search=layer: outputs in a candidate's layer-output loss: of its own block (or the piece between "
        "two blocks that it is in), or of that and all later ones, summed; the figure's sum is over all layers, and a "
        "layer changes those from its own on",
    )
    local_outputs: Literal["pieces", "blocks"] = Field(
        "pieces",
        description="search=network: outputs that the layer-output loss is summed over, of all pieces with weights, "
        "stem and head among them, or of transformer blocks alone",
    )
    local_weight: float = Field(
        1.0, ge=0, description="weight of the layer-output loss beside the output loss (the figure shows none)"
    )
    anchors: Literal["quantized", "float", "both"] = Field(
        "quantized",
        description="local_loss=infonce: whose vectors are the anchors, with the other model's as positives; both is "
        "the mean of the two (the figure's colours allow either)",
    )
    negatives: Literal["other", "both"] = Field(
        "other",
        description="local_loss=infonce: other images' vectors that repel, of the model that the anchor is not of, or "
        "of both models (the figure shows negatives in both)",
    )
    centred: bool = Field(
        False, description="layer outputs are compared less the float model's mean over images (own choice)"
    )
    pooling: Literal["tokens", "channels", "none"] = Field("tokens", description="what layer outputs are averaged over")
    search_temperature: float = Field(1.0, gt=0, description="of the layer-output contrastive loss (own choice)")
    output_loss: Literal["candidate", "accept", "none"] = Field(
        "candidate",
        description="where the output loss enters fitness: for every candidate (the paper's figure); once per layer, "
        "when its best gene is accepted (many times cheaper; search=network: as for every candidate); or nowhere",
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
    sensitivity: Literal["pass", "start"] = Field(
        "pass",
        description="mixed precision, search=layer: when it is measured what every width of a layer costs: before the "
        "search and again in every pass, or before the search alone, which takes half the time but leaves the first "
        "widths, the best by those costs, nearly as they are (ours, as the budget)",
    )
    activation_margin: int = Field(
        2, ge=0, description="mixed precision: activations have the weights' width plus this, at most 8"
    )

    @property
    def half_of_cycles(self) -> int:
        """After how many cycles images are refreshed: of three two, since one would be twice as many refreshes."""
        return (self.cycles + 1) // 2

    @model_validator(mode="after")
    def _candidates(self) -> Self:
        if list(self.widths) != sorted(set(self.widths)) or not all(2 <= b <= 8 for b in self.widths):
            raise ValueError("widths must rise from 2 to 8 at most")
        whole = self.output_loss == "candidate" or (self.search == "network" and self.output_loss == "accept")
        if not self.local_weight and not whole:
            raise ValueError(
                "local_weight=0 leaves nothing to rank candidates by; take output_loss=candidate, or a weight above 0"
            )
        return self


SEARCH = (
    "weights are asymmetric min-max with a zero point (the paper's footnote 4), where psaq, noise and real use the "
    "symmetric quantizer of PSAQ-ViT's code (clamp+minmax and minmax.weights=asymmetric separate the two); at 8 bits "
    "too, where the published evaluation code has signed, symmetric weights",
    "ranges are widened to contain 0 (the published code clips the zero point instead)",
    "a gene is a layer's bit-width and one multiplier on its per-channel scales; activation ranges are min-max on the "
    "images",
    "the contrastive layer-output loss keeps each image's similarities to all others (relational, temperature 1), a "
    "reading chosen by held-out synthetic images of two natural models; the literal form of the method's figure takes "
    "the search away from a good start (local_loss=infonce, search_temperature=0.1)",
    "crossover, mutation width and initial spread are inferred",
    "the method's figure draws one vector of all layers with one fitness, cells exchanged between two vectors, two "
    "children, and a mixing step; search=network is a reconstruction of that drawing: how many cells change and by how "
    "much, who is mixed with whom, the first population, that mutation follows crossover, and the repair of budgets "
    "are inferred or ours",
    "presets quick and default search each layer by itself, for its cost (search=layer): a population for each layer, "
    "whose crossover blends multipliers into one child; candidates are ranked by the loss at their own block's output, "
    "and the output loss of the whole model counts once, when the best one is accepted (output_loss=accept); preset "
    "paper has both losses for every candidate, as the figure has",
    "the layer-output loss has negatives of one model and one direction; the figure shows negatives in both models "
    "(options anchors, negatives)",
    "presets quick and default make 2 passes (preset paper: 10), quick with a population of 8 and 4 cycles (15 and 6); "
    "in mixed precision quick measures sensitivity once, so that hardly any other widths than the first are tried",
    "mixed precision: the budget bounds the parameter-weighted mean weight width; a child above it is repaired by "
    "taking bits from the layers whose fitness suffers least; activations get min(8, weight width + 2). All inferred",
)
# A search that a CPU can run: a layer's candidates cost that layer, the figure's whole networks.
SHORT: dict[str, object] = {"search": "layer", "passes": 2, "output_loss": "accept"}
QUICK: dict[str, object] = SHORT | {"population": 8, "cycles": 4, "sensitivity": "start"}

INFO = PluginInfo(
    name="clamp-search",
    kind="calibrator",
    summary="CLAMP-ViT stage 2 alone, on any images: layer-wise evolutionary search of scales and bit-widths",
    target="methods.calibrators.clamp_search.calibrator:ClampSearch",
    requires="methods.core.graph.requirements:pieces",
    origin="reconstruction",
    options=SearchStage,
    presets={"quick": QUICK, "default": SHORT, "paper": {}},
    partner="clamp",
    mixed=True,
    paper=CLAMP,
    code=CLAMP_CODE,
    deviations=SEARCH,
)
