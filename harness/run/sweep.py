"""Runs a plan: every cell through an executor into the store."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.plan.plan import Estimator, Plan
from harness.results.record import Record
from harness.results.store import Store
from harness.run.display import Display
from harness.run.worker import Executor


def run_plan(
    plan: Plan, store: Store, executor: Executor, display: Display, tell: Callable[[Record], object] = lambda _: None
) -> list[Record]:
    """Measure what is to be measured, keep each record as soon as it is there, then `tell` it.

    Returns:
        Records of what failed, also of those that were not kept because the store has an earlier result of the cell.

    Raises:
        UsageError: a record cannot be written, for example because the disk is full.
    """
    todo = [planned.cell for planned in plan.todo]
    estimator = Estimator(store.records())
    failures: list[Record] = []
    for index, cell in enumerate(todo):
        expected = [estimator.seconds(later) for later in todo[index:]]
        display.start(cell, expected, time.monotonic())
        record = _measure(executor, store, cell, display)
        failures += [record] * (record.status == "failed")
        estimator.learn(record)
        display.finished(record)
        tell(record)
    return failures


def _measure(executor: Executor, store: Store, cell: Cell, display: Display) -> Record:
    """Measure a cell and keep its record; a failure does not take the place of a result, be it another process's."""
    measured = executor.run(cell, display.progress)
    if measured.record.status == "failed" and any(map(store.has_result, (cell.key, cell.labelled_key))):
        return measured.record
    try:
        store.save(measured.record, measured.outcomes, measured.images, measured.snapshots, measured.pictures)
    except OSError as error:
        text = f"cannot write to folder {store.folder} ({error.strerror}); what was measured before is kept"
        raise UsageError(text) from None
    return measured.record
