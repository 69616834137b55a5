"""Runs a plan: every cell through an executor into the store."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from harness.api.errors import UsageError
from harness.plan.estimate import Estimator
from harness.plan.plan import Plan
from harness.results.record import Record
from harness.results.store import Store
from harness.run.display import Display
from harness.run.executors.base import Executor
from harness.run.runner import Measured
from harness.run.work import Work


def run_plan(
    plan: Plan,
    store: Store,
    executor: Executor,
    console: Console,
    *,
    tell: Callable[[Record], object] = lambda _: None,
    jobs: int = 1,
) -> list[Record]:
    """Measure what is to be measured, keep each record as soon as it is there, then `tell` it.

    `jobs` is how many cells run at a time, for the time that is left.

    Returns:
        Records of what failed, also of those that were not kept because the store has an earlier result of the cell.

    Raises:
        UsageError: a record cannot be written, for example because the disk is full, or the executor left cells out.
    """
    estimator = Estimator(store.records())
    # Whoever else measures into this folder may have been faster than this process was since it planned.
    todo = [each for each in plan.todo if not (each.state in ("new", "failed") and store.has_result(each.cell.key))]
    cells = [planned.cell for planned in todo]
    failures: list[Record] = []
    left = {cell.key for cell in cells}
    images = {planned.cell.key: planned.images for planned in todo}
    work = Work(cells, estimator.seconds, images, estimator.making)
    with Display(console, cells, estimator.seconds, jobs) as display:
        for measured in executor.map(work, display.progress):
            record = measured.record
            if not measured.kept:
                keep(measured, store)
            failures += [record] * (record.status == "failed")
            estimator.learn(record)
            display.finished(record)
            tell(record)
            left.discard(record.cell.key)
    if left:
        raise UsageError(f"the executor gave no result of {len(left)} cells; the same command tries them again")
    return failures


def keep(measured: Measured, store: Store) -> None:
    """Store a result; a failure does not take the place of an earlier one, be it another process's."""
    cell = measured.record.cell
    if measured.record.status == "failed" and any(map(store.has_result, (cell.key, cell.labelled_key))):
        return
    try:
        store.save(measured.record, measured.outcomes, measured.images, measured.snapshots, measured.pictures)
    except OSError as error:
        text = f"cannot write to folder {store.folder} ({error.strerror}); what was measured before is kept"
        raise UsageError(text) from None
