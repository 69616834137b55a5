"""Values that many documents have in common are held in memory once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Gives for a value the first one that was equal to it. Nobody may change what it gives.

    Args:
        same: What two values are equal by.
        most: Values that are known at a time; then it begins anew.
    """

    def __init__(self, same: Callable[[T], Hashable], most: int = 4096) -> None:
        self._same = same
        self._most = most
        self._known: dict[Hashable, T] = {}

    def __call__(self, value: T) -> T:
        """The value itself, or one like it."""
        if len(self._known) >= self._most:
            self._known.clear()
        return self._known.setdefault(self._same(value), value)


_PLACES: Pool[dict[str, int]] = Pool(tuple)  # name -> its place


class Pairs(Mapping[str, tuple[float, float]]):
    """A pair of numbers by name, in the order given; the names are shared with all others that have the same."""

    __slots__ = ("_numbers", "_places")

    def __init__(self, pairs: Mapping[str, tuple[float, float]]) -> None:
        self._places = _PLACES({name: place for place, name in enumerate(pairs)})
        self._numbers = array("d", chain.from_iterable(pairs.values()))

    def __getitem__(self, name: str) -> tuple[float, float]:
        place = 2 * self._places[name]
        return self._numbers[place], self._numbers[place + 1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Pairs({dict(self)})"
