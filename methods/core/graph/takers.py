"""Which operations of a network take which of its parameters, so that one may be changed without another noticing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from methods.core.graph.intercept import OpKey
from methods.core.graph.operations import LEAVING


class _Place(NamedTuple):
    """Where a tensor lies: its memory, and the first byte of it and the one behind the last."""

    memory: int
    first: int
    end: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        size, first = tensor.element_size(), int(tensor.storage_offset()) * tensor.element_size()
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(tensor.untyped_storage()._cdata, first, first + (reach + 1) * size if tensor.numel() else first)


class Takers:
    """Notes what takes each parameter of `net` while it runs.

    Parameters are told by their memory: a view of one stands for it, and two in the same memory are taken together.
    """

    def __init__(self, net: nn.Module) -> None:
        self._keys: dict[str, set[OpKey | None]] = defaultdict(set)
        self._places: dict[int, list[tuple[_Place, str]]] = defaultdict(list)
        for name, parameter in net.named_parameters():
            place = _Place.of(parameter)
            self._places[place.memory].append((place, name))

    def note(self, key: OpKey | None, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """The operation `key`, or one that has no key, makes tensors of tensors; `name` is that of its function.

        One without a key that only makes views of a parameter, or asks for its shape, takes nothing yet.
        """
        for parameter in {parameter for tensor in given for parameter in self._in(tensor)}:
            looks = all(parameter in self._in(tensor) for tensor in made) if made else name not in LEAVING
            if key is not None or not looks:
                self._keys[parameter].add(key)

    def _in(self, tensor: Tensor) -> Iterator[str]:
        """Names of the parameters that share memory with the tensor."""
        if tensor.layout is not torch.strided:
            return
        own = _Place.of(tensor)
        for place, name in self._places.get(own.memory, ()):
            if own.first < place.end and place.first < own.end:
                yield name

    def alone(self) -> dict[str, OpKey]:
        """The keyed operations that alone take a parameter, as it is and in however many runs, by its name."""
        found = {}
        for name, keys in self._keys.items():
            (first, *others) = keys
            if first is not None and not others:
                found[name] = first
        return found
