"""How long cells may take, from the records of earlier ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.identity.names import parse_name
from harness.results.record import Record

_SYNTHESIS = "synthesize"  # the stage of making images


@dataclass(frozen=True)
class Basis:
    """What an estimate stands on: GPUs or processors that measured, and whether only other models were measured."""

    machines: frozenset[str]
    other_models: bool


class Estimator:
    """Wall time of a cell from those of earlier ones.

    Same model, method and preset count most, then same method and preset; then the same of its variants in brackets.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._sums: dict[tuple[str, ...], tuple[float, int]] = {}  # seconds of a group of cells, and their number
        self._machines: dict[tuple[str, ...], frozenset[str]] = {}  # what measured a group
        self._making: dict[tuple[str, ...], float] = {}  # seconds of the last images that were made in a group
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take a record into account, unless it ended early."""
        if record.status == "ok":
            machine = _machine(record)
            for group in _groups(record.cell):
                total, number = self._sums.get(group, (0.0, 0))
                self._sums[group] = total + record.seconds, number + 1
                if machine not in self._machines.get(group, ()):
                    self._machines[group] = self._machines.get(group, frozenset()) | {machine}
                if _SYNTHESIS in record.stages:
                    self._making[group] = record.stages[_SYNTHESIS].seconds

    def seconds(self, cell: Cell) -> float | None:
        """Estimate, or None if no such method was measured."""
        total, number = next((self._sums[group] for group in _groups(cell) if group in self._sums), (0.0, 0))
        return total / number if number else None

    def basis(self, cell: Cell) -> Basis | None:
        """What `seconds` stands on; None if it is None."""
        for number, group in enumerate(_groups(cell)):
            if group in self._sums:
                return Basis(self._machines[group], other_models=number % 2 == 1)
        return None

    def making(self, cell: Cell) -> float | None:
        """Seconds that the synthesis of its images may take, None if no such method was measured."""
        return next((self._making[group] for group in _groups(cell) if group in self._making), None)


def _machine(record: Record) -> str:
    hardware = record.provenance.hardware
    return str(hardware.get("gpu") or hardware.get("processor") or "an unknown machine")


def _groups(cell: Cell) -> tuple[tuple[str, ...], ...]:
    own = (cell.task, cell.method, cell.preset, str(cell.limit))
    family = ("variants", cell.task, _without_brackets(cell.method), cell.preset, str(cell.limit))
    return (*own, cell.model), own, (*family, cell.model), family


@cache
def _without_brackets(method: str) -> str:
    try:
        return "+".join(part.name for part in parse_name(method))
    except UsageError:  # the name in a record need not be one
        return method
