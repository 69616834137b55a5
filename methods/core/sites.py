"""Which tensors a scheme quantizes, decided from the data flow alone.

`full` follows PSAQ-ViT / FQ-ViT / CLAMP-ViT: every tensor that an integer pipeline would have to store, which
includes the residual stream, LayerNorm outputs and attention logits; softmax outputs and what feeds GELU stay in float.
`matmul` follows PTQ4ViT / RepQ-ViT: the operands of linear layers, convolutions and matrix products, and nothing
else; a convolution's input has 8 bits whatever the activation width.
In both, all weights have the weight width, patch embedding and head included, and biases stay in float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.spec import BitSpec
from methods.core.intercept import OUTPUT, OpKey
from methods.core.trace import Op, Operand, Trace

CONV_INPUT_BITS = 8  # scheme `matmul`: RepQ-ViT's code, `zkkli/RepQ-ViT`


class NoSitesError(RuntimeError):
    """Nothing to quantize was found."""


@dataclass(frozen=True)
class WeightSite:
    """A weight parameter of a linear layer or convolution; output channels are axis 0."""

    parameter: str
    op: OpKey
    bits: int

    def __str__(self) -> str:
        """The parameter's qualified name."""
        return self.parameter


@dataclass(frozen=True)
class ActivationSite:
    """An operand (slot 0, 1, ...) or the output (slot -1) of an operation."""

    op: OpKey
    slot: int
    bits: int

    @property
    def point(self) -> tuple[OpKey, int]:
        """Key for `Interceptor` transforms."""
        return (self.op, self.slot)

    def __str__(self) -> str:
        """`blocks.0.attn/matmul.1:in1`."""
        return f"{self.op}:{'out' if self.slot == OUTPUT else f'in{self.slot}'}"


@dataclass(frozen=True)
class Sites:
    """All sites of one network under one scheme and bit-width, in execution order."""

    weights: tuple[WeightSite, ...]
    activations: tuple[ActivationSite, ...]


def find_sites(trace: Trace, scheme: str, spec: BitSpec) -> Sites:
    """Sites of `scheme` in the traced network.

    Raises:
        NoSitesError: the network has no weight or no activation to quantize.
        KeyError: unknown scheme.
    """
    select: Callable[[Op, Trace, set[OpKey]], list[tuple[int, int | None]]] = {"full": _full, "matmul": _matmul}[scheme]
    activations: list[ActivationSite] = []
    stored: set[OpKey] = set()  # operations whose output is quantized
    for op in trace.ops:
        for slot, bits in select(op, trace, stored):
            activations.append(ActivationSite(op.key, slot, spec.activation if bits is None else bits))
            if slot == OUTPUT:
                stored.add(op.key)
    weights: dict[str, WeightSite] = {}
    for op in trace.ops:
        if op.weight is not None:
            weights.setdefault(op.weight, WeightSite(op.weight, op.key, spec.weight))
    if not weights or not activations:
        raise NoSitesError("no quantizable operation was found; the network has no linear layer or convolution")
    return Sites(tuple(weights.values()), tuple(activations))


def _matmul(op: Op, trace: Trace, stored: set[OpKey]) -> list[tuple[int, int | None]]:
    if op.key.kind == "conv":
        return [(0, CONV_INPUT_BITS)]
    if op.key.kind == "linear":
        return [(0, None)]
    if op.key.kind == "matmul":
        return [(0, None), (1, None)]
    return []


def _full(op: Op, trace: Trace, stored: set[OpKey]) -> list[tuple[int, int | None]]:
    kind = op.key.kind
    slots: list[int] = []
    if kind in ("conv", "linear", "matmul"):
        slots += [i for i, operand in enumerate(op.operands) if _needs_own_site(operand, stored)]
    if kind == "add":
        slots += [i for i, operand in enumerate(op.operands) if operand.is_parameter]
    if _output_is_stored(op, trace):
        slots.append(OUTPUT)
    return [(slot, None) for slot in slots]


def _needs_own_site(operand: Operand, stored: set[OpKey]) -> bool:
    """An operand that no output site covers, such as the image; softmax outputs stay in float in this scheme."""
    return not all(key in stored or key.kind == "softmax" for key in operand.ops) or not operand.ops


def _output_is_stored(op: Op, trace: Trace) -> bool:
    kind = op.key.kind
    if kind in ("conv", "matmul", "layer_norm", "activation", "pool"):
        return True
    if kind == "linear":
        consumers = trace.consumers[op.key]
        # fc1 -> GELU: one fused operation, whose input is never stored.
        return not consumers or any(c.key.kind != "activation" for c in consumers)
    if kind == "add":
        # Adding the attention mask (a buffer of 0 and -100) is part of softmax; its sum must not stretch the range.
        return not any(o.is_constant for o in op.operands) and not all(o.is_parameter for o in op.operands)
    if kind == "cat":
        return any(o.is_parameter for o in op.operands)  # class token joins the patches
    return False
