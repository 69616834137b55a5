"""Bit-widths and schemes: what is quantized to how many bits, apart from how the scales are found."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UsageError

_PATTERN = re.compile(r"W(\d+)A(\d+)", re.IGNORECASE)
MIN_BITS, MAX_BITS = 2, 8

# `full`: residual stream, LayerNorm outputs, q.k logits ... (PSAQ-ViT, FQ-ViT, CLAMP-ViT); softmax stays in float.
# `matmul`: operands of linear layers and matrix products only (PTQ4ViT, RepQ-ViT).
SCHEMES = ("full", "matmul")


@dataclass(frozen=True)
class BitSpec:
    """Bits of weights and activations, written `W4A8`."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> BitSpec:
        """Read `W<bits>A<bits>` with 2 to 8 bits each.

        Raises:
            UsageError: another form or range; the message gives an example.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"bits '{text}' are not of the form W<weight bits>A<activation bits>; try W4A8 or W8A8")
        weight, activation = int(match[1]), int(match[2])
        if not all(MIN_BITS <= b <= MAX_BITS for b in (weight, activation)):
            raise UsageError(f"bits '{text}' are outside {MIN_BITS} to {MAX_BITS}; try W4A8 or W8A8")
        return cls(weight, activation)

    def __str__(self) -> str:
        """`W4A8`."""
        return f"W{self.weight}A{self.activation}"
