"""Runs a plan: every cell through an executor into the store. What it ends with decides the exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich.console import Console

from harness.cell import Cell
from harness.display import Display
from harness.errors import UsageError
from harness.plan import Estimator, Plan
from harness.provenance import versions
from harness.record import Record
from harness.runner import Settings
from harness.sinks import Reporter, Sink
from harness.store import Store
from harness.worker import Executor, InProcess, WorkerProcess

OK, SOME_FAILED, NOTHING_MEASURED = 0, 3, 4


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


def run_and_report(
    plan: Plan,
    store: Store,
    settings: Settings,
    console: Console,
    *,
    timeout: float | None,
    in_process: bool,
    sink: Sink | None = None,
) -> int:
    """Run the plan, make the report of its cells and return the exit code; a sink gets what was measured now."""
    failures: list[Record] = []
    if plan.todo:
        reporter = Reporter(sink, lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True))
        executor: Executor = InProcess(settings) if in_process else WorkerProcess(settings, timeout)
        try:
            reporter.start({"suite": plan.cells[0].cell.suite, "threads": settings.threads, **versions()})
            with Display(console, len(plan.todo)) as display:
                failures = run_plan(plan, store, executor, display, reporter.cell)
        finally:
            executor.close()
            reporter.finish()
    records = store.records()
    code = exit_code(plan, records)
    kept = {record.cell.key for record in records if record.status == "ok"} & {record.key for record in failures}
    if kept:
        text = f"{len(kept)} of these cells failed when measured again; the tables have their earlier results."
        console.print(text, style="yellow")
        code = SOME_FAILED if code == OK else code
    if code == NOTHING_MEASURED:
        console.print("Nothing was measured.", style="red")
    else:
        report(store, plan.keys, console)
    if plan.reused_stale:
        console.print(f"{plan.reused_stale} of these cells are stale; see the plan above.", style="yellow")
    return code


def report(store: Store, keys: set[str] | None, console: Console) -> None:
    """Write tables and figures beside the records and print the main table."""
    from harness.report import write_report

    write_report(store, store.folder, keys, console)


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


def exit_code(plan: Plan, records: Iterable[Record]) -> int:
    """The exit code of a run, from the records of its cells.

    A run without one quantized result measured nothing, unless it asked for the float reference only.
    """
    of_plan = [record for record in records if record.cell.key in plan.keys]
    only_float = all(planned.cell.is_float for planned in plan.cells)
    failed = any(record.status == "failed" for record in of_plan)
    ok = [record for record in of_plan if record.status == "ok"]
    if not ok or (not failed and not only_float and all(record.cell.is_float for record in ok)):
        return NOTHING_MEASURED
    return SOME_FAILED if failed else OK
