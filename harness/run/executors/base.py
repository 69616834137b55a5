"""What an executor is: one call that maps cells to results as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from harness.identity.cell import Cell
from harness.run.runner import Measured

# Told which cell is running, what it is doing and how far it is (0 to 1); first of all when a cell begins.
Watch = Callable[[Cell, str, float], None]


class Executor(Protocol):
    """Measures cells with `harness.run.runner.CellRunner`, wherever and however many at a time.

    Made by `ExecutorInfo.target`, called as `target(settings, timeout)` with `harness.run.runner.Settings` and the
    seconds after which a cell counts as failed (None: it may take as long as it likes).
    """

    def map(self, cells: Iterable[Cell], watch: Watch) -> Iterator[Measured]:
        """The result of each of `cells` once, as soon as it is there, in any order.

        Cells are best begun in the order given: those that share a float model stand together. May be called again.
        Whatever goes wrong inside a cell is a failed record and not raised. Closing the iterator early need not stop
        anything; `close` does.

        Raises:
            KeyboardInterrupt: the user interrupted.
        """

    def close(self) -> None:
        """Stop at once, also in the middle of a cell."""
