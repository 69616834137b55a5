"""What the user sees of a run: the plan, its progress and its end. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import mean

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.identity.cell import Cell
from harness.io.text import visible
from harness.plan.plan import Plan, Planned
from harness.results.record import Record


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def show_plan(plan: Plan, console: Console) -> None:
    """Cells by model and method, and one sentence about the time."""
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
    console.print(_time_sentence(plan))
    if plan.reused_stale:
        console.print(
            f"[yellow]{plan.reused_stale} stale cells were measured with other code or versions and are used as they "
            "are; --rerun stale measures them again.[/]"
        )
    for notice in plan.notices:
        console.print(f"[yellow]Note: {escape(notice)}.[/]")


def _skips(plan: Plan) -> list[str]:
    """One sentence for each reason that a method cannot run on a model."""
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for planned in plan.cells:
        if planned.reason is not None:
            methods.setdefault((planned.cell.model, planned.reason), {})[planned.cell.method] = None
    return [f"{model}: {', '.join(names)} skipped: {reason}" for (model, reason), names in methods.items()]


def _estimate(seconds: Sequence[float | None]) -> str:
    if not seconds:
        return ""
    known = [value for value in seconds if value is not None]
    return duration(sum(known)) if len(known) == len(seconds) else "?"


def _time_sentence(plan: Plan) -> str:
    run = [planned.estimate for planned in plan.todo if planned.state != "skip"]
    known = [value for value in run if value is not None]
    if not run:
        return f"{len(plan.cells)} cells, all of them done: nothing to run."
    text = f"{len(run)} of {len(plan.cells)} cells to run"
    if not known:
        return f"{text}; no time estimate, since nothing like them was measured here before."
    text += f", about {duration(sum(known))}"
    unknown = len(run) - len(known)
    return f"{text} plus {unknown} without an estimate (?), never measured here before." if unknown else f"{text}."


class Display:
    """Progress of a sweep over `cells`. A context manager: the bar lives inside.

    `expected` gives the seconds that a cell may take, None if nothing is known of it.
    """

    def __init__(self, console: Console, cells: Sequence[Cell], expected: Callable[[Cell], float | None]) -> None:
        self._console = console
        self._expected = expected
        self._total = len(cells)
        self._left = {cell.key: cell for cell in cells}
        self._running: dict[str, tuple[float, float]] = {}  # key -> when it began, and how far it is
        self._seconds: float | None = None  # that the cells not finished may take, from their beginnings
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=self._total, left="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, cell: Cell, text: str, fraction: float) -> None:
        """A cell begins, or says how far it is."""
        now = time.monotonic()
        if cell.key not in self._running:
            self._running[cell.key] = now, fraction
            self._seconds = self._estimate()
        began, _ = self._running[cell.key]
        self._running[cell.key] = began, fraction
        left = ""
        if self._seconds is not None:
            elapsed = sum(now - began for began, _ in self._running.values())
            left = f"about {duration(max(self._seconds - elapsed, 0.0) / len(self._running))} left"
        shown = f"{text} {fraction:.0%}" if text else ""
        description = escape(visible(f"{cell.label}  {shown}"))
        self._bar.update(self._task, description=description, completed=self._completed(), left=left)

    def _estimate(self) -> float | None:
        """Seconds of all cells that are not finished; None if nothing like any of them was measured."""
        expected = [self._expected(cell) for cell in self._left.values()]
        known = [seconds for seconds in expected if seconds is not None]
        # A cell that was never measured is taken to be like the average of the others.
        return sum(mean(known) if seconds is None else seconds for seconds in expected) if known else None

    def _completed(self) -> float:
        done = self._total - len(self._left)
        return done + 0.999 * sum(fraction for _, fraction in self._running.values())

    def finished(self, record: Record) -> None:
        """A cell ended; one line of it stays."""
        self._left.pop(record.cell.key, None)
        self._running.pop(record.cell.key, None)
        self._bar.update(self._task, completed=self._completed())
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
