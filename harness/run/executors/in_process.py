"""Cells in this process, for debuggers and fast tests."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from functools import partial

from harness.run.executors.base import Resources, Watch
from harness.run.runner import CellRunner, Measured, Settings
from harness.run.work import Work


class InProcess:
    """Runs cells here. A crash of a cell ends the sweep, as Ctrl-C does; what a cell leaves behind in this process is
    undone as far as `CellRunner` can.
    """

    def __init__(self, settings: Settings, _resources: Resources | None = None) -> None:
        self._runner = CellRunner(settings)

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """Measure the cells one after the other.

        Raises:
            KeyboardInterrupt: the user interrupted; one that a cell's own code raises makes it a failed cell.
        """
        for cell in work:
            watch(cell, "", 0.0)
            with _interrupts_noted() as interrupted:
                measured = self._runner.measure(cell, partial(watch, cell))
            if interrupted:
                raise KeyboardInterrupt
            yield measured

    def close(self) -> None:
        """Nothing to stop."""


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C raises KeyboardInterrupt as ever, and is noted in the list."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def interrupt(number: int, _frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
