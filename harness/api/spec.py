"""Bit-widths and schemes: what is quantized to how many bits, apart from how the scales are found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from harness.api.errors import UsageError
from harness.api.formats import MICROSCALING, Format

_BLOCKS = r"MX(?:INT|FP)\d+(?:E\d+M\d+)?"
_FIXED = re.compile(rf"(?:W(\d+)|({_BLOCKS}))A(?:(\d+)|({_BLOCKS}))", re.IGNORECASE)
_ALONE = re.compile(_BLOCKS, re.IGNORECASE)
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

    Microscaling formats, `MXFP4A8`, `W4AMXINT8`, `MXFP4AMXFP8`: their name stands for either part, or alone for both
    (`MXFP8`). `weights` and `activations` are their formats then, and the widths are those of their values.
    """

    weight: float
    activation: int | None
    mixed: bool = False
    weights: Format | None = None
    activations: Format | None = None

    @classmethod
    def parse(cls, text: str) -> BitSpec:
        """Read `W<bits>A<bits>`, 2 to 8 bits each, with a name of `MICROSCALING` in place of either part or of all of
        it, `MP<mean weight bits>` or `MP<mean weight bits>A<bits>`.

        Raises:
            UsageError: another form or range, or more digits than a float has; the message gives an example.
        """
        written = text.strip()
        fixed, mixed = _FIXED.fullmatch(written), _MIXED.fullmatch(written)
        if _ALONE.fullmatch(written):
            both = _microscaling(written, text)
            return cls(both.bits, both.bits, weights=both, activations=both)
        if fixed is not None:
            weights, activations = (None if name is None else _microscaling(name, text) for name in fixed.group(2, 4))
            weight = int(fixed[1]) if weights is None else weights.bits
            activation = int(fixed[3]) if activations is None else activations.bits
            spec = cls(weight, activation, weights=weights, activations=activations)
        elif mixed is not None:
            spec = cls(float(mixed[1]), int(mixed[2]) if mixed[2] else None, mixed=True)
            if Decimal(repr(spec.weight)) != Decimal(mixed[1]):
                raise UsageError(f"bits '{text}' have more digits than can be kept; write {spec}, or fewer digits")
        else:
            raise UsageError(
                f"bits '{text}' are not of the form W<weight bits>A<activation bits>, where a microscaling format may "
                "stand for either part, or alone for both, or MP<mean weight bits> for mixed precision; try W4A8, "
                "MXFP4A8, MXINT8 or MP4.5"
            )
        if not all(b is None or MIN_BITS <= b <= MAX_BITS for b in (spec.weight, spec.activation)):
            raise UsageError(f"bits '{text}' are outside {MIN_BITS} to {MAX_BITS}; try W4A8 or MP4.5")
        return spec

    @property
    def in_blocks(self) -> bool:
        """Whether weights or activations have a microscaling format."""
        return self.weights is not None or self.activations is not None

    @property
    def formats(self) -> tuple[Format, Format] | None:
        """What `W4A8` is a name for: the format of weights, with a scale for each output channel, and that of
        activations, with one scale, or their microscaling formats. None in mixed precision, where the method chooses.
        """
        if self.mixed or self.activation is None:
            return None
        return (
            self.weights or Format(int(self.weight), granularity="channel"),
            self.activations or Format(self.activation),
        )

    def __str__(self) -> str:
        """`W4A8`, `MXFP4A8`, `MP4.5`; `parse` reads an equal precision from it, with all digits of a mixed one."""
        if self.weights is not None and self.weights == self.activations:
            return _NAMES[self.weights]
        weight = repr(float(self.weight)).removesuffix(".0")
        first = f"{'MP' if self.mixed else 'W'}{weight}" if self.weights is None else _NAMES[self.weights]
        second = self.activation if self.activations is None else _NAMES[self.activations]
        return first if second is None else f"{first}A{second}"


_NAMES = {known: name for name, known in MICROSCALING.items()}


def _microscaling(name: str, text: str) -> Format:
    """The format called `name` in bits `text`; one of two layouts may be named in full as well, as `MXFP4E2M1`."""
    plain = name.upper()
    for known, found in MICROSCALING.items():
        if plain in (known, f"{known}{str(found).partition('/')[0].upper()}"):
            return found
    raise UsageError(f"bits '{text}' name no microscaling format; there are {', '.join(MICROSCALING)}")
