"""Candidate quantizers of one tensor, all computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax, twin_gelu, twin_softmax
from methods.core.numerics.affine import fake_quantize, symmetric_step
from methods.core.numerics.granularity import PER_TENSOR, Granularity
from methods.core.numerics.quantizers import Quantizer, Uniform

SPLITS = 20  # of softmax: 2^0 .. 2^-19
ALIGNMENTS = range(-5, 25)  # exponents of GELU's positive step


class Grid(Protocol):
    """Candidates of a tensor's quantizer; each of its groups chooses its own."""

    count: int
    groups: int

    def rounded(self, x: Tensor, part: slice) -> Tensor:
        """`x` under the candidates of `part`: (k, *x.shape). All groups use the same candidate."""

    def quantizer(self, choice: Tensor | None) -> Quantizer:
        """The quantizer whose groups use candidates `choice` (groups,); before any choice that of min-max."""


def linear_factors(alpha: float, beta: float, count: int) -> Tensor:
    """Factors alpha + i (beta - alpha) / count, i = 0 .. count - 1."""
    return alpha + torch.arange(count) * (beta - alpha) / count


class SymmetricGrid:
    """Codes -2^(b-1) .. 2^(b-1) - 1; candidate steps are factors of the min-max step max|x| / (2^(b-1) - 0.5).

    Args:
        bits: b.
        extremes: (groups,) largest magnitude of every group.
        factors: (n,) candidates.
        granularity: which values are a group.
    """

    def __init__(self, bits: int, extremes: Tensor, factors: Tensor, granularity: Granularity = PER_TENSOR) -> None:
        self._half = 2 ** (bits - 1)
        self._base = symmetric_step(extremes, bits)
        self._factors = factors.to(self._base)
        self._granularity = granularity
        self.count, self.groups = len(factors), len(extremes)

    def rounded(self, x: Tensor, part: slice) -> Tensor:
        """See `Grid`."""
        steps = self._factors[part, None] * self._base
        return fake_quantize(x, self._granularity.aligned(steps, x.shape), -self._half, self._half - 1)

    def quantizer(self, choice: Tensor | None) -> Quantizer:
        """See `Grid`."""
        step = self._granularity.stored(self._base if choice is None else self._base * self._factors[choice])
        zero = torch.zeros_like(step, dtype=torch.int32)
        return Uniform(step, zero, -self._half, self._half - 1, self._granularity)


class SoftmaxGrid:
    """Candidate splits 2^-i, i = 0 .. 19, of `TwinSoftmax`."""

    def __init__(self, bits: int, *, summed: bool) -> None:
        self._bits = bits
        self._summed = summed
        self._splits = [2.0**-i for i in range(SPLITS)]
        self.count, self.groups = SPLITS, 1

    def rounded(self, x: Tensor, part: slice) -> Tensor:
        """See `Grid`."""
        splits = torch.tensor(self._splits[part], dtype=x.dtype, device=x.device).view(-1, *[1] * x.dim())
        return twin_softmax(x, splits, self._bits, summed=self._summed)

    def quantizer(self, choice: Tensor | None) -> Quantizer:
        """See `Grid`; before any choice the ranges halve the bits between them."""
        index = (self._bits - 1) // 2 if choice is None else int(choice)
        return TwinSoftmax(self._bits, self._splits[index], self._summed)


class GeluGrid:
    """Candidate positive steps of `TwinGelu`; the negative one makes its range end at the function's minimum.

    Args:
        bits: k; q = 2^(k-1).
        highest: largest value, a scalar.
        minimum: of the activation function, positive.
        factors: (n,) candidates relative to highest / (q - 0.5); None: the negative step times 2^-5 .. 2^24.
    """

    def __init__(self, bits: int, highest: Tensor, minimum: float, factors: Tensor | None) -> None:
        self._bits = bits
        half = 2 ** (bits - 1)
        self._negative = torch.full_like(highest, minimum / half)
        self._start = symmetric_step(highest, bits)
        if factors is None:
            self._steps = self._negative * torch.tensor([2.0**i for i in ALIGNMENTS]).to(highest)
            # The finest that clips nothing.
            self._start = self._steps[int((self._steps < self._start).sum().clamp(max=len(self._steps) - 1))]
        else:
            self._steps = self._start * factors.to(highest)
        self.count, self.groups = len(self._steps), 1

    def rounded(self, x: Tensor, part: slice) -> Tensor:
        """See `Grid`."""
        return twin_gelu(x, self._negative, self._steps[part].view(-1, *[1] * x.dim()), self._bits)

    def quantizer(self, choice: Tensor | None) -> Quantizer:
        """See `Grid`."""
        positive = self._start if choice is None else self._steps[int(choice)]
        return TwinGelu(self._bits, self._negative, positive)


def extremes(tensors: Sequence[Tensor], granularity: Granularity = PER_TENSOR) -> Tensor:
    """(groups,) largest magnitudes of all `tensors`, in each of the granularity's groups of values."""
    return torch.stack([granularity.rows(x.abs()).amax(1) for x in tensors]).amax(0)
