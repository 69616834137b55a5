"""OPT-m: two regions of steps whose ratio, a power of two, is the one of least squared error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from methods.core.layer_search.grids import SPLITS
from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax
from methods.core.numerics.quantizers import Quantizer


class Choice:
    """Adds up the squared errors of candidate quantizers, by width, over the batches that it sees.

    Args:
        candidates: quantizers of each width.
    """

    def __init__(self, candidates: Mapping[int, Sequence[Quantizer]]) -> None:
        self._candidates = candidates
        self._errors = {bits: torch.zeros(len(each), dtype=torch.float64) for bits, each in candidates.items()}

    def update(self, x: Tensor) -> None:
        """See one batch."""
        for bits, quantizers in self._candidates.items():
            errors = [(q(x) - x).square_().sum(dtype=torch.float64) for q in quantizers]
            self._errors[bits] += torch.stack(errors).cpu()

    def best(self, bits: int) -> Quantizer:
        """The first candidate of least error."""
        return self._candidates[bits][int(self._errors[bits].argmin())]


def behind_gelu(widths: Iterable[int], minimum: Tensor) -> Choice:
    """Negative steps `minimum` / (2^(b - 1) - 1), which depend on the bits b alone; positive ones are those times 2^m
    with m = 0 .. b + 2.
    """
    found = {}
    for bits in widths:
        negative = minimum / (2 ** (bits - 1) - 1)
        found[bits] = [TwinGelu(bits, negative, negative * 2.0**m) for m in range(bits + 3)]
    return Choice(found)


def behind_softmax(widths: Iterable[int]) -> Choice:
    """Splits 2^-i, which are the ratio of the two steps."""
    return Choice({bits: [TwinSoftmax(bits, 2.0**-i) for i in range(SPLITS)] for bits in widths})
