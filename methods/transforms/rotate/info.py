"""What `rotate` says of itself."""

from __future__ import annotations

from pydantic import Field

from harness.api.plugins import Options, PluginInfo


class RotateOptions(Options):
    """Options of the rotations."""

    residual: bool = Field(
        True,
        description="R1: the residual stream, where that has one width and goes to LayerNorms alone (not in Swin, "
        "whose merging joins channels); the record's diagnostics say where it was left out and why",
    )
    queries: bool = Field(True, description="R2: queries and keys of every head; refused where they are normalised")
    values: bool = Field(True, description="R3: values of every head, and the projection that takes them")


INFO = PluginInfo(
    name="rotate",
    kind="transform",
    summary="rotates residual stream and attention heads by random Hadamard matrices, which spreads outliers",
    target="methods.transforms.rotate.transform:Rotate",
    requires="methods.core.graph.requirements:blocks",
    origin="published code",
    options=RotateOptions,
    ablations={
        "residual stream alone": {"queries": False, "values": False},
        "heads alone": {"residual": False},
    },
    paper="Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, NeurIPS 2024; for vision "
    "transformers Sun et al., GLF-Q: Global-Local Feature-Based Quantization for Vision Transformers, 2026",
    code="spcl/QuaRot (formulas only, no code read); none of GLF-Q",
    deviations=(
        "LayerNorms stay: the stream's rotation is reflected so that it keeps the mean, which centring has made 0, "
        "and its entries differ from a Hadamard matrix's by about 1 / width (the papers: the Hadamard matrix, and "
        "RMSNorm, which of centred values is LayerNorm); so calibrators that need LayerNorms work behind it",
        "rotations of sizes without a Hadamard matrix by Sylvester's and Paley's constructions are random orthogonal "
        "ones, and the record's diagnostics say so",
        "offline rotations only, none while the network runs (QuaRot has them in front of the second layer of MLPs)",
    ),
)
