"""What the checks of a cell cost: `python tests/perf/checks.py`, about 15 minutes on one core.

Measures cells of the embedded suite in this process, one after the other, and prints the CPU seconds of what looks at
methods, models and results, as a share of the whole cell. CPU time is that of all threads, so that others on the
machine disturb little. What a loaded model costs once is printed with its first cell. Image caches start empty.
Nothing here is a test: times depend on the machine, so they are printed, not asserted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from harness.catalog.catalog import Catalog
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from harness.run import checks, runner
from harness.run.runner import CellRunner, Settings
from methods.core import audit
from methods.core.graph import trace

# Where -> what it is counted as. Tracing is counted apart: methods trace for themselves, in checks it is extra.
COUNTED: tuple[tuple[Any, str, str], ...] = (
    (CellRunner, "_check_process", "process"),
    (runner, "ProcessState", "process"),
    (runner, "Snapshot", "float model"),
    (runner, "check_untouched", "float model"),
    (runner, "check_handed_over", "float model"),
    (runner, "check_images", "images"),
    (runner, "flaw", "record"),
    (runner, "contradiction", "record"),
    (checks.Evaluated, "__init__", "result"),
    (checks.Inspected, "__init__", "result"),
    (checks.Inspected, "check_unchanged", "result"),
    (checks.Evaluated, "_check", "outputs"),
    (runner.Requirements, "unmet", "requirements"),
    (audit, "trace_net", "tracing"),
    (trace, "trace_net", "tracing"),
)


class Clock:
    """CPU seconds by what they went to. What is counted inside of something else is no longer counted there."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []

    def counted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, with its time counted as `name`."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append((name, time.process_time()))
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()
                if self._open:
                    self._open[-1] = self._open[-1][0], time.process_time()

        return timed

    def _switch(self) -> None:
        if self._open:
            name, since = self._open[-1]
            now = time.process_time()
            self.spent[name] += now - since
            self._open[-1] = name, now


def measure(cells: list[Any], settings: Settings) -> None:
    """Run `cells` and print, as each ends, what it spent on checks."""
    clock = Clock()
    for owner, attribute, name in COUNTED:
        setattr(owner, attribute, clock.counted(getattr(owner, attribute), name))
    names = list(dict.fromkeys(name for *_, name in COUNTED))
    columns = ("CPU s", "checks, s", "share", *names)
    print_row("cell", columns)
    cell_runner = CellRunner(settings)
    for cell in cells:
        clock.spent.clear()
        start = time.process_time()
        record = cell_runner.measure(cell, lambda *_: None).record
        whole, total = time.process_time() - start, sum(clock.spent.values())
        what = f"{cell.method} {cell.model} {cell.bits}" + ("" if record.status == "ok" else f": {record.status}")
        parts = [f"{clock.spent[name]:.3f}" for name in names]
        values = (f"{whole:.2f}", f"{total:.3f}", f"{100 * total / whole:.2f} %", *parts)
        print_row(what, values)


def print_row(what: str, values: tuple[str, ...]) -> None:
    """One line of the table, at once: a cell can take minutes."""
    sys.stdout.write(f"{what:<24}" + "".join(f"{value:>13}" for value in values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit", "swin"])
    parser.add_argument("--methods", nargs="+", default=["noise", "psaq", "clamp"])
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W4A4"])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--limit", type=int, help="evaluation images, all by default")
    args = parser.parse_args()
    names = tuple(args.methods), tuple(args.models), tuple(args.bits)
    request = Request(*names, limit=args.limit, preset=args.preset, references=False)
    catalog = Catalog.default()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(request, catalog, Store(Path(folder)))
        cache = Path(folder) / "cache"
        cache.mkdir()
        settings = Settings(catalog, "cpu", 1, cache, requested=plan.requested)
        measure([planned.cell for planned in plan.cells], settings)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
