"""Executors as another package would bring them."""

from __future__ import annotations

from functools import partial

from harness.run.runner import CellRunner
from harness.run.work import Work


class Backwards:
    """Has all cells under way at once, and ends the last one first."""

    def __init__(self, settings, resources):
        self.runner = CellRunner(settings)

    def map(self, work, watch):
        cells = work.cells
        for cell in cells:
            watch(cell, "", 0.0)
        for cell in reversed(cells):
            yield self.runner.measure(cell, partial(watch, cell))

    def close(self):
        pass


class Forgets(Backwards):
    """Leaves the first cell out."""

    def map(self, work, watch):
        yield from super().map(Work(work.cells[1:]), watch)
