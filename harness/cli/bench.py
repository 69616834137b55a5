"""`bench`: a plan is run, and what came of it reported."""

from __future__ import annotations

from rich.console import Console

from harness.io.exit_codes import NOTHING_MEASURED, OK, SOME_FAILED
from harness.plan.outcome import exit_code
from harness.plan.plan import Plan
from harness.results.provenance import versions
from harness.results.record import Record
from harness.results.store import Store
from harness.run.executors.base import Detached, Resources
from harness.run.executors.registry import open_executor
from harness.run.runner import Settings
from harness.run.sinks import Reporter, Sink
from harness.run.sweep import run_plan


def run_and_report(
    plan: Plan,
    store: Store,
    settings: Settings,
    console: Console,
    *,
    executor: str,
    resources: Resources,
    sink: Sink | None = None,
) -> int:
    """Run the plan, make the report of its cells and return the exit code.

    `executor` is the name of what runs cells, with `resources`; a sink gets what was measured now.

    Raises:
        UsageError: no such executor, or something cannot be written.
    """
    failures: list[Record] = []
    if plan.todo:
        reporter = Reporter(sink, lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True))
        runs = open_executor(executor, settings, resources)
        try:
            reporter.start({"suite": plan.cells[0].cell.suite, "threads": settings.threads, **versions()})
            failures = run_plan(plan, store, runs, console, tell=reporter.cell, jobs=resources.jobs or 1)
        except Detached as handed_over:
            console.print(str(handed_over), markup=False, highlight=False, soft_wrap=True)
            return OK
        finally:
            runs.close()
            reporter.finish()
    elif sink is not None:
        console.print("No cell was left to run, so that nothing new went to the tracker.", soft_wrap=True)
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
