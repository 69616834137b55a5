"""What the user sees of a run: the plan, its progress and its end. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.identity.cell import Cell
from harness.io.text import duration, visible
from harness.plan.plan import Plan, Planned
from harness.results.record import Record
from harness.run.forecast import sentences


def show_plan(plan: Plan, console: Console, jobs: int | None = 1, here: Iterable[str] | None = ()) -> None:
    """Cells by model and method, and how long they may take; `jobs` and `here` as in `harness.run.forecast`."""
    table = Table(title="Plan", title_justify="left")
    for name in ("task", "model", "method"):
        table.add_column(name, overflow="fold")
    for name in ("cells", "done", "stale", "failed", "new", "skip", "to run", "estimate"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str, str], list[Planned]] = {}
    for planned in plan.cells:
        groups.setdefault((planned.cell.task, planned.cell.model, planned.cell.method), []).append(planned)
    for group, members in groups.items():
        states = [member.state for member in members]
        run = [member.estimate for member in members if member.run and member.state != "skip"]
        counts = [len(members), *(states.count(s) for s in ("done", "stale", "failed", "new", "skip")), len(run)]
        names = [escape(visible(name)) for name in group]
        table.add_row(*names, *(str(n) if n else "-" for n in counts), _estimate(run))
    console.print(table)
    for text in _skips(plan):
        console.print(visible(text), style="yellow", markup=False, highlight=False, soft_wrap=True)
    for text in sentences(plan, jobs, here):
        console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
    if plan.reused_stale:
        console.print(
            f"[yellow]{plan.reused_stale} stale cells were measured with other code or versions and are used as they "
            "are; --rerun stale measures them again.[/]"
        )
    for notice in plan.notices:
        console.print(f"[yellow]Note: {escape(notice)}.[/]")


def _skips(plan: Plan) -> list[str]:
    """One sentence for each reason that methods cannot run on models."""
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for planned in plan.cells:
        if planned.reason is not None:
            methods.setdefault((planned.cell.model, planned.reason), {})[planned.cell.method] = None
    models: dict[tuple[str, str], list[str]] = {}
    for (model, reason), names in methods.items():
        models.setdefault((", ".join(names), reason), []).append(model)
    return [f"{', '.join(where)}: {names} skipped: {reason}" for (names, reason), where in models.items()]


def _estimate(seconds: Sequence[float | None]) -> str:
    if not seconds:
        return ""
    known = [value for value in seconds if value is not None]
    return duration(sum(known)) if len(known) == len(seconds) else "?"


@dataclass
class _Running:
    """A cell that is being measured."""

    began: float  # on the monotonic clock
    expected: float | None  # seconds
    line: TaskID
    fraction: float = 0.0


class Display:
    """Progress of a sweep over `cells`: a bar for all of them, and a line for each that runs. A context manager.

    `expected` gives the seconds that a cell may take, None if nothing is known of it; `jobs` cells run at a time.
    """

    def __init__(
        self, console: Console, cells: Sequence[Cell], expected: Callable[[Cell], float | None], jobs: int = 1
    ) -> None:
        self._console = console
        self._expected = expected
        self._estimate_at = len(cells)  # cells left at which the estimate is made anew
        self._jobs = jobs
        self._total = len(cells)
        self._left = {cell.key: cell for cell in cells}
        self._running: dict[str, _Running] = {}
        self._seconds: float | None = None  # that the cells not finished may take, from their beginnings
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=self._total, done="", left="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, cell: Cell, text: str, fraction: float) -> None:
        """A cell begins, or says how far it is."""
        if cell.key not in self._running:
            line = self._bar.add_task("", total=1.0, done="", left="")
            self._running[cell.key] = _Running(time.monotonic(), self._expected(cell), line)
            # It looks at every cell, so that of very many it must not be made for each.
            if self._seconds is None or len(self._left) <= self._estimate_at:
                self._seconds, self._estimate_at = self._estimate(), len(self._left) * 49 // 50
        running = self._running[cell.key]
        running.fraction = fraction
        shown = f"{text} {fraction:.0%}" if text else ""
        self._bar.update(running.line, description=escape(visible(f"{cell.label}  {shown}")), completed=fraction)
        self._show()

    def _show(self) -> None:
        left = self._time_left(time.monotonic())
        done = self._total - len(self._left)
        self._bar.update(
            self._task,
            description=f"{len(self._running)} running",
            completed=done + 0.999 * sum(running.fraction for running in self._running.values()),
            done=f"{done}/{self._total}",
            left="" if left is None else f"about {duration(left)} left",
        )

    def _time_left(self, now: float) -> float | None:
        """Seconds until all is done: the work that is left on all hosts, but not less than the longest running cell."""
        if self._seconds is None:
            return None
        spent = [(running, now - running.began) for running in self._running.values()]
        hosts = max(len(spent), min(self._jobs, len(self._left)), 1)
        together = (self._seconds - sum(seconds for _, seconds in spent)) / hosts
        longest = [running.expected - seconds for running, seconds in spent if running.expected is not None]
        return max(together, *longest, 0.0)

    def _estimate(self) -> float | None:
        """Seconds of all cells that are not finished; None if nothing like any of them was measured."""
        expected = [self._expected(cell) for cell in self._left.values()]
        known = [seconds for seconds in expected if seconds is not None]
        # A cell that was never measured is taken to be like the average of the others.
        return sum(mean(known) if seconds is None else seconds for seconds in expected) if known else None

    def finished(self, record: Record) -> None:
        """A cell ended; one line of it stays."""
        self._left.pop(record.cell.key, None)
        width = len(str(self._total))
        head = f"[{self._total - len(self._left):{width}}/{self._total}] {record.cell.label}"
        if record.failure is not None:
            text, style = f"FAILED {record.failure.headline}", "red"
        elif record.status == "skipped":
            text, style = f"skipped: {record.reason}", "yellow"
        else:
            metric = record.primary_metric or ""
            text, style = f"{metric} {record.metrics[metric]:.2f}", ""
        line = visible(f"{head}: {text} ({duration(record.seconds)})")
        self._console.print(line, style=style, markup=False, highlight=False)
        running = self._running.pop(record.cell.key, None)
        if running is not None:
            self._bar.remove_task(running.line)
        self._show()
