"""Bit-widths and schemes: what is quantized to how many bits, apart from how the scales are found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from harness.api.errors import UsageError
from harness.api.formats import Format

_FIXED = re.compile(r"W(\d+)A(\d+)", re.IGNORECASE)
_MIXED = re.compile(r"MP(\d+(?:\.\d+)?)(?:A(\d+))?", re.IGNORECASE)
MIN_BITS, MAX_BITS = 2, 8

# `full`: residual stream, LayerNorm outputs, q.k logits ... (PSAQ-ViT, FQ-ViT, CLAMP-ViT); softmax stays in float.
# `matmul`: operands of linear layers and matrix products only (PTQ4ViT, RepQ-ViT).
SCHEMES = ("full", "matmul")


def split_scheme(text: str) -> tuple[str, str | None]:
    """Which tensors (one of SCHEMES) and in which part of the model (None: all of it): `full`, `matmul:backbone`."""
    tensors, _, part = text.partition(":")
    return tensors, part or None


@dataclass(frozen=True)
class BitSpec:
    """Bits of weights and activations.

    Fixed precision, `W4A8`: every weight and every activation has the same width. Mixed precision, `MP4.5`: the method
    chooses each layer's weight width; `weight` is the most that their mean, weighted by the number of parameters, may
    be; activation widths follow from the weights' (`activation` is None), or are all the same (`MP4.5A8`).
    """

    weight: float
    activation: int | None
    mixed: bool = False

    @classmethod
    def parse(cls, text: str) -> BitSpec:
        """Read `W<bits>A<bits>`, `MP<mean weight bits>` or `MP<mean weight bits>A<bits>`, 2 to 8 bits each.

        Raises:
            UsageError: another form or range, or more digits than a float has; the message gives an example.
        """
        fixed, mixed = _FIXED.fullmatch(text.strip()), _MIXED.fullmatch(text.strip())
        if fixed is not None:
            spec = cls(int(fixed[1]), int(fixed[2]))
        elif mixed is not None:
            spec = cls(float(mixed[1]), int(mixed[2]) if mixed[2] else None, mixed=True)
            if Decimal(repr(spec.weight)) != Decimal(mixed[1]):
                raise UsageError(f"bits '{text}' have more digits than can be kept; write {spec}, or fewer digits")
        else:
            raise UsageError(
                f"bits '{text}' are not of the form W<weight bits>A<activation bits>, or MP<mean weight bits> for "
                "mixed precision; try W4A8 or MP4.5"
            )
        widths = [spec.weight] if spec.activation is None else [spec.weight, spec.activation]
        if not all(MIN_BITS <= b <= MAX_BITS for b in widths):
            raise UsageError(f"bits '{text}' are outside {MIN_BITS} to {MAX_BITS}; try W4A8 or MP4.5")
        return spec

    @property
    def formats(self) -> tuple[Format, Format] | None:
        """What `W4A8` is a name for: the format of weights, with a scale for each output channel, and that of
        activations, with one scale. None in mixed precision, where the method chooses.
        """
        if self.mixed or self.activation is None:
            return None
        return Format(int(self.weight), granularity="channel"), Format(self.activation)

    def __str__(self) -> str:
        """`W4A8`, `MP4.5`; `parse` reads an equal precision from it, with all digits of a mixed one."""
        activation = "" if self.activation is None else f"A{self.activation}"
        weight = repr(float(self.weight)).removesuffix(".0")
        return f"{'MP' if self.mixed else 'W'}{weight}{activation}"
