"""Number formats: how the values of one tensor are stored, apart from how the scales are found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from harness.api.errors import UsageError

Kind = Literal["int", "log", "float"]  # equal steps, powers of a base, floating point
Granularity = Literal["tensor", "channel", "head", "group"]
ScaleFormat = Literal["float32", "float16", "bfloat16", "e8m0"]  # e8m0: a power of two, as in the MX formats

_SCALE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "e8m0": 8}
_TEXT = re.compile(r"(?:(int|log)(\d+)|e(\d+)m(\d+))/(tensor|channel|head|group)(\d+)?/(\w+)")


@dataclass(frozen=True)
class Format:
    """The format of one tensor.

    `bits` are those of one value, its sign included. `granularity` says which values share a scale: all of a tensor,
    those of one channel or attention head, or `group` successive ones. `scale` is the format of the scales.
    `exponent` is the number of a floating-point value's bits that hold its exponent.

    Raises:
        UsageError: fields that do not go together.
    """

    bits: int
    kind: Kind = "int"
    granularity: Granularity = "tensor"
    group: int | None = None
    scale: ScaleFormat = "float32"
    exponent: int | None = None

    def __post_init__(self) -> None:
        known = {"kind": Kind, "granularity": Granularity, "scale": ScaleFormat}
        for name, values in known.items():
            if getattr(self, name) not in get_args(values):
                raise UsageError(
                    f"unknown {name} '{getattr(self, name)}' of a format; known: {', '.join(get_args(values))}"
                )
        if self.bits < 1:
            raise UsageError(f"a format has at least 1 bit, not {self.bits}")
        if (self.granularity == "group") != (self.group is not None) or (self.group or 1) < 1:
            raise UsageError("a format has a size of groups if its granularity is 'group', and then 1 or more values")
        if (self.kind == "float") != (self.exponent is not None) or not 0 <= (self.exponent or 0) < self.bits:
            raise UsageError("a format has exponent bits if its kind is 'float', fewer than its bits")

    @classmethod
    def parse(cls, text: str) -> Format:
        """Read what `str` writes: `int4/channel/float32`, `e2m1/group32/e8m0`.

        Raises:
            UsageError: another form, or fields that do not go together.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise UsageError(f"format '{text}' is not of the form int4/channel/float32 or e2m1/group32/e8m0")
        kind, bits, exponent, mantissa, granularity, group, scale = found.groups()
        size = int(group) if group else None
        if kind is None:
            e, m = int(exponent), int(mantissa)
            return cls(1 + e + m, "float", granularity, size, scale, e)  # type: ignore[arg-type]  # checked there
        return cls(int(bits), kind, granularity, size, scale)  # type: ignore[arg-type]  # checked there

    def __str__(self) -> str:
        """`int4/channel/float32`; `parse` reads an equal format from it."""
        value = f"{self.kind}{self.bits}"
        if self.exponent is not None:
            value = f"e{self.exponent}m{self.bits - 1 - self.exponent}"
        return f"{value}/{self.granularity}{self.group or ''}/{self.scale}"

    def scale_bits(self, scales: int) -> int:
        """Bits of so many scales; zero points, where there are any, are not among them."""
        return scales * _SCALE_BITS[self.scale]


def _blocks(bits: int, exponent: int | None = None) -> Format:
    return Format(bits, "int" if exponent is None else "float", "group", 32, "e8m0", exponent)


# The OCP Microscaling Formats (MX), v1.0: 32 successive values along the axis that a product sums over share a scale,
# a power of two. The specification has no integers but of 8 bits; those of fewer are the same with fewer of them.
# Where it has two layouts for one width, the plain name is that with the longer mantissa.
MICROSCALING: Mapping[str, Format] = {
    "MXFP8": _blocks(8, 4),
    "MXFP8E5M2": _blocks(8, 5),
    "MXFP6": _blocks(6, 2),
    "MXFP6E3M2": _blocks(6, 3),
    "MXFP4": _blocks(4, 2),
    **{f"MXINT{bits}": _blocks(bits) for bits in range(8, 1, -1)},
}
