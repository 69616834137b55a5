"""What PSAQ-ViT V2 says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.api.plugins import PluginInfo
from methods.core.synthesis.options import VariationOptions


class Psaq2Options(VariationOptions):
    """Options of PSAQ-ViT V2. Nothing but the abstract is known: what is not PSAQ-ViT's own is ours, and marked so."""

    bandwidth: float = Field(0.01, gt=0, description="kernel bandwidth of the similarity density (PSAQ-ViT's)")
    grid: int = Field(10, ge=2, description="points at which the density is evaluated (PSAQ-ViT's)")
    alternations: int = Field(
        20, ge=0, description="rounds of image steps and student steps after the first images (number ours)"
    )
    image_steps: int = Field(50, ge=1, description="image steps per round, from the images at hand (number ours)")
    image_lr: float = Field(0.05, gt=0, description="Adam's learning rate of those (ours)")
    discrepancy_weight: float = Field(
        1.0, ge=0, description="weight of the student's discrepancy, which image steps increase (ours)"
    )
    discrepancy_bound: float = Field(
        2.0,
        gt=0,
        description="the discrepancy counts as a multiple of what it was before the round's image steps, up to this "
        "(ours; the abstract says 'adaptive')",
    )
    bound_form: Literal["clip", "saturate"] = Field(
        "saturate", description="how the bound is kept: b (1 - exp(-r / b)) for the multiple r, or min(r, b) (ours)"
    )
    distance: Literal["mae", "task"] = Field(
        "mae",
        description="discrepancy of the student's outputs from the float model's: mean absolute error, or the task's "
        "distance (classification: KL); the form is ours",
    )
    student_steps: int = Field(50, ge=0, description="steps of the student's weights per round (number ours)")
    student_lr: float = Field(1e-5, gt=0, description="Adam's learning rate of the student, its state kept (ours)")
    student_batch: int = Field(32, ge=1, description="images a student step, drawn without replacement (ours)")
    trained: Literal["weights", "all"] = Field(
        "weights",
        description="what of the student is trained: the weights that are quantized, or biases, LayerNorms and "
        "embeddings too (ours)",
    )
    weights: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="per-channel min-max grid of weights, which follows them (PSAQ-ViT's: symmetric)"
    )
    ranges: Literal["minmax", "percentile", "omse"] = Field(
        "minmax", description="activation ranges, taken anew in every round (PSAQ-ViT's: minmax)"
    )


def _preset(steps: int, alternations: int, image_steps: int, student_steps: int, student_lr: float) -> dict[str, Any]:
    return {
        "steps": steps,
        "alternations": alternations,
        "image_steps": image_steps,
        "student_steps": student_steps,
        "student_lr": student_lr,
    }


INFO = PluginInfo(
    name="psaq2",
    kind="method",
    summary="PSAQ-ViT V2 (our reconstruction): trains the quantized model's weights and images against each other",
    target="methods.end_to_end.psaq2.method:Psaq2",
    requires="methods.core.graph.requirements:blocks",
    origin="reconstruction",
    options=Psaq2Options,
    presets={"quick": _preset(20, 2, 5, 10, 1e-4), "default": _preset(75, 5, 20, 20, 5e-5), "paper": {}},
    ablations={
        "student not trained": {"student_steps": 0},
        "images do not seek the discrepancy": {"discrepancy_weight": 0.0},
        "images stay, student not trained": {"alternations": 0},
        "discrepancy clipped": {"bound_form": "clip"},
        "task's distance": {"distance": "task"},
        "biases and LayerNorms trained too": {"trained": "all"},
        "OMSE activation ranges": {"ranges": "omse"},
    },
    trains="weights",
    paper="Li et al., PSAQ-ViT V2: Toward Accurate and General Data-Free Quantization for Vision Transformers, IEEE "
    "TNNLS 2023",
    code="none released",
    deviations=(
        "a reconstruction of which only the abstract was verified: patch similarity without a class loss, and images "
        "and student that evolve in turns under the float teacher; every number and form beyond PSAQ-ViT's is ours",
        "ours: the discrepancy and its bound, all learning rates, step counts and the number of rounds, and that the "
        "quantized weights alone are trained, with straight-through rounding",
        "ours: first images are PSAQ-ViT's without class loss; the discrepancy joins in the rounds after",
        "preset `paper` is our guess at a full-size run and no published setting",
        "weights are trained, so this is closer to data-free quantization-aware training than to calibration",
        "total-variation target and jitter are scaled from 224x224 RGB to the model's image size",
        "ranges are widened to contain 0 (PSAQ-ViT's quantizer clips the zero point instead)",
    ),
)
