from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.io.text import duration
from harness.results.record import Failure, Provenance, Record
from harness.run.display import Display


@pytest.fixture
def record(toy_cell):
    def make(status: str, seed: int = 0, **fields) -> Record:
        cell = toy_cell(seed=seed)
        provenance = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)
        times = {"started": "s", "finished": "f", "seconds": 12.3}
        return Record(key=cell.key, cell=cell, status=status, provenance=provenance, **times, **fields)

    return make


@pytest.mark.parametrize("terminal", [True, False])
def test_every_ending_leaves_a_line(record, terminal):
    text = io.StringIO()
    records = [
        record("ok", metrics={"top1": 81.234}, primary_metric="top1"),
        record("skipped", 1, reason="no [sense]"),
        record("failed", 2, failure=Failure(type="ValueError", message="bad [b]\nmore")),
    ]
    console = Console(file=text, force_terminal=terminal, width=160)
    seconds = {3: 3700.0}  # nothing is known of the others
    running, waiting = record("ok", 3).cell, record("ok", 4).cell
    cells = [*(each.cell for each in records), running, waiting]
    with Display(console, cells, lambda cell: seconds.get(cell.seed)) as display:
        for each in records:
            display.progress(each.cell, "", 0.0)
            display.progress(each.cell, "search [1]", 0.5)
            display.finished(each)
        display.progress(running, "search [1]", 0.5)
    shown = text.getvalue()
    assert "[1/5] tiny toynoise W4A8 full seed 0: top1 81.23 (12 s)" in shown
    assert "skipped: no [sense]" in shown
    assert "FAILED ValueError: bad [b] (12 s)" in shown
    assert ("search [1] 50%" in shown) == terminal
    # One hour expected, and the cell without an estimate counts as the average.
    assert ("about 2 h 03 min left" in shown) == terminal


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "under 1 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
