"""What the treatment of memory is worth: python tests/perf/allocation.py, or nox -s perf -- --only memory.

Two small cells of the embedded ViT, one that synthesizes and one that trains, in processes of their own: as they are
measured; with freed memory given back, as the C library does by itself; with new memory filled, as deterministic mode
does and as it is for foreign code. CPU time of the cell; the least of some rounds, in which the three take turns.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 2
WAYS = {"given back": "freed memory given back", "filled": "new memory filled"}
CELLS = ("psaq", "noise+qdrop")
PROGRAM = """
import sys
import tempfile
import time
from pathlib import Path

from harness.catalog.catalog import Catalog
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from harness.run import runner

method, way = sys.argv[1:]
if way == "given back":
    runner.keep_freed_memory = lambda: None
if way == "filled":
    runner.is_builtin = lambda *_: False
with tempfile.TemporaryDirectory() as folder:
    catalog, overrides = Catalog.default(), {method.rpartition("+")[2]: {"steps": 15}}
    request = Request((method,), ("vit",), ("W4A4",), limit=100, preset="quick", seeds=1, overrides=overrides)
    (planned,) = [p for p in make_plan(request, catalog, Store(Path(folder))).cells if p.cell.method == method]
    cells = runner.CellRunner(runner.Settings(catalog, "cpu", 1, Path(folder)))
    start = time.process_time()
    record = cells.measure(planned.cell, lambda *_: None).record
    assert record.status == "ok", record.failure
    print(time.process_time() - start)
"""


def timed(method: str, way: str) -> float:
    """CPU seconds of a cell."""
    command = [sys.executable, "-c", PROGRAM, method, way]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measured() -> Iterator[tuple[str, str, float, float]]:
    """The method, what is compared with, CPU seconds as cells are measured, and of what is compared with."""
    for method in CELLS:
        rounds = [{way: timed(method, way) for way in ("", *WAYS)} for _ in range(ROUNDS)]
        least = {way: min(each[way] for each in rounds) for way in rounds[0]}
        for way, text in WAYS.items():
            yield method, text, least[""], least[way]


def main() -> None:
    """Measure and print."""
    for method, text, ours, other in measured():
        sys.stdout.write(f"{method}: {ours:.1f} s; {text}: {other:.1f} s, {other / ours:.2f} times as long\n")


if __name__ == "__main__":
    main()
