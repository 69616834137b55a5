"""Which values of a tensor share a scale and a zero point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

from torch import Tensor


class Granularity(ABC):
    """A tensor is cut into equal blocks, and all values of a block share their parameters.

    Parameters are vectors (blocks,), the blocks in row-major order; `stored` says how a quantizer keeps them.
    """

    @abstractmethod
    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lengths of a block of a tensor of `shape`, one for each axis."""

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many blocks lie along each axis of a tensor of `shape`.

        Raises:
            ValueError: `shape` cannot be cut into such blocks.
        """
        block = self.block(shape)
        if len(block) != len(shape) or any(size < 1 or n % size for n, size in zip(shape, block, strict=True)):
            raise ValueError(f"a tensor of shape {tuple(shape)} is not made of whole blocks {tuple(block)} ({self})")
        return tuple(n // size for n, size in zip(shape, block, strict=True))

    def rows(self, x: Tensor) -> Tensor:
        """The values of `x` block by block, (blocks, values of a block).

        Raises:
            ValueError: see `counts`.
        """
        counts, block = self.counts(x.shape), self.block(x.shape)
        cut = x.reshape(*chain.from_iterable(zip(counts, block, strict=True)))
        order = (*range(0, cut.dim(), 2), *range(1, cut.dim(), 2))
        return cut.permute(order).reshape(prod(counts), -1)

    def aligned(self, parameters: Tensor, shape: Sequence[int]) -> Tensor:
        """`parameters` so that they broadcast against a tensor of `shape`.

        Args:
            parameters: (..., blocks), leading axes being candidates; or a scalar, which stays one.
            shape: of the tensor.

        Raises:
            ValueError: there are not as many parameters as blocks, or see `counts`.
        """
        if not parameters.dim():
            return parameters
        counts, block = self.counts(shape), self.block(shape)
        if parameters.shape[-1] != prod(counts):
            raise ValueError(
                f"a tensor of shape {tuple(shape)} has {prod(counts)} blocks ({self}), not {parameters.shape[-1]}"
            )
        found = parameters.reshape(*parameters.shape[:-1], *counts)
        for i, (count, size) in enumerate(zip(counts, block, strict=True), parameters.dim() - 1):
            if count > 1 and size > 1:  # a single block broadcasts by itself
                found = found.repeat_interleave(size, i)
        return found

    def stored(self, parameters: Tensor) -> Tensor:
        """`parameters` (blocks,) as a quantizer keeps them."""
        return parameters


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale in all, which quantizers keep as a scalar."""

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Granularity`."""
        return tuple(shape)

    def stored(self, parameters: Tensor) -> Tensor:
        """The one value as a scalar."""
        return parameters.squeeze(0)


PER_TENSOR = PerTensor()


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale for each index of `axis`, which may count from the end."""

    axis: int

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Granularity`."""
        return _changed(shape, self.axis, 1)

    def whole(self, rows: Tensor, like: Tensor) -> Tensor:
        """`rows` undone: of the shape of `like`."""
        return rows.view(like.movedim(self.axis, 0).shape).movedim(0, self.axis)


@dataclass(frozen=True)
class PerHead(Granularity):
    """One scale for each of `heads` equal pieces of `axis`: heads of attention, or q, k and v of a layer for all."""

    axis: int
    heads: int

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Granularity`."""
        length = shape[_place(shape, self.axis)]
        return _changed(shape, self.axis, 0 if length % self.heads else length // self.heads)


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for every `size` successive values along `axis`, at each index of the other axes."""

    axis: int
    size: int

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Granularity`."""
        return _changed((1,) * len(shape), self.axis, self.size)


@dataclass(frozen=True)
class PerBlock(Granularity):
    """One scale for each block of `sizes`, one length for each axis of the tensor."""

    sizes: tuple[int, ...]

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Granularity`."""
        return self.sizes


def _place(shape: Sequence[int], axis: int) -> int:
    """`axis` counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"a tensor of shape {tuple(shape)} has no axis {axis}")
    return axis % len(shape)


def _changed(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """`shape` with the length of `axis` replaced."""
    place = _place(shape, axis)
    return (*shape[:place], size, *shape[place + 1 :])
