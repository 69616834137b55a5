"""What Evol-Q's calibrator says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from harness.api.plugins import PluginInfo
from methods.core.integer.options import FqvitOptions


def _no_validation(value: object) -> object:
    if value == "validation":
        raise PydanticCustomError(
            "selection",
            "the reference selects with validation accuracy, which this benchmark refuses: calibration is the only "
            "value",
        )
    return value


class EvolqOptions(FqvitOptions):
    """Options of Evol-Q: those of its start, which FQ-ViT's calibrator makes, and those of its search.

    Defaults are the reference code's unless a description says otherwise.
    """

    weights: Literal["symmetric", "asymmetric"] = Field("asymmetric", description="per-channel weight quantizer")
    observer: Literal["minmax", "ema", "percentile", "omse"] = Field(
        "omse", description="activation ranges (see fqvit)"
    )
    softmax: Literal["log-int", "log2", "uniform", "float"] = Field(
        "uniform", description="softmax outputs (see fqvit)"
    )
    softmax_bits: int = Field(8, ge=2, le=8, description="bits of softmax outputs in scheme full; matmul has its own")
    moments: bool = Field(
        True,
        description="give every rounded weight channel the mean and standard deviation of the float one; its zero "
        "point is then no integer",
    )
    searched: Literal["attention", "block"] = Field(
        "attention", description="layers whose weight scales are searched: attention's, or the MLP's too (own addition)"
    )
    passes: int = Field(10, ge=1, description="passes over all blocks, each from the last to the first")
    cycles: int = Field(3, ge=1, description="cycles per block and pass; each measures one candidate")
    population: int = Field(15, ge=1, description="scale vectors of a block, at first that in use so many times")
    sample: int = Field(10, ge=1, description="draws, with replacement, from which the fittest becomes the parent")
    epsilon: float | None = Field(
        None,
        gt=0,
        description="largest change of a scale; if left out 1e-4 at 8 bits, else 1e-3 (code; a note on the paper has "
        "the two the other way round)",
    )
    epsilon_units: Literal["absolute", "relative"] = Field(
        "absolute", description="whether that is in the weight's own units or relative to the scale (own addition)"
    )
    temperature: float = Field(3.0, gt=0, description="of the contrastive loss")
    fitness_batch: int = Field(
        100, ge=2, description="images that are contrasted with each other; one left over joins the last"
    )
    select: Annotated[Literal["calibration"], BeforeValidator(_no_validation)] = Field(
        "calibration", description="what candidates are selected by: their loss on the calibration images"
    )


_CORRECT: dict[str, Any] = {"moments": False, "epsilon_units": "relative", "epsilon": 0.05}

INFO = PluginInfo(
    name="evolq",
    kind="calibrator",
    summary="Evol-Q: evolves attention's weight scales block by block under a contrastive loss of the outputs",
    target="methods.calibrators.evolq.calibrator:EvolQ",
    requires="methods.core.graph.requirements:pieces",
    origin="published code",
    options=EvolqOptions,
    presets={
        "quick": {**_CORRECT, "passes": 3},
        "default": _CORRECT,
        "paper": {"batch": 100},
    },
    ablations={
        "MLP scales too": {"searched": "block"},
        "weight moments restored": {"moments": True},
        "weight moments not restored": {"moments": False},
        "one pass": {"passes": 1},
    },
    partner="real",
    paper="Frumkin et al., Jumping through Local Minima: Quantization in the Loss Landscape of Vision Transformers, "
    "ICCV 2023",
    code="enyac-group/evol-q, Apache-2.0 (formulas re-implemented)",
    deviations=(
        "candidates are selected by calibration loss alone (the reference: by validation accuracy after every block, "
        "on which its published numbers therefore depend)",
        "no gradient is used and no label; activation ranges, zero points and all other weight scales stay as FQ-ViT's "
        "calibrator sets them, with its deviations (see fqvit)",
        "as many images as the source makes (32 unless told otherwise; the reference: 1,000, e.g. real[images=1000])",
        "presets quick and default perturb scales in proportion to themselves (the reference: by an absolute amount, "
        "which means another thing in every layer), and keep integer zero points (moments=false); quick makes 3 passes",
        "attention's layers are found by data flow: all linear layers of a block before attention joins the residual",
        "outputs that are not one vector per image (detection, segmentation) are contrasted tensor by tensor, each "
        "flattened, and the losses averaged; the paper has classifiers only",
        "scheme matmul is not the paper's: there it starts from FQ-ViT's ranges for that scheme",
    ),
)
