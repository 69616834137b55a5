"""A whole report of hostile and damaged data: FAULTS K5 "... shown as text everywhere", "the rest is made"."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from typer.testing import CliRunner

from harness.cli.main import app
from harness.report import write_report
from harness.report.figures.files import save
from harness.report.page.page import Images, page
from harness.results.record import Failure, Notice, Provenance

from . import synthetic as fake

LONG = "x" * 300
NAMES = (
    *("$x^2$ $\\frac$", "\x1b[31mred\x1b[0m", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a|b", "[red]x[/red]"),
    *("a\nb\u2028c", "\u202etxt", "**bold**", "[a](javascript:alert(1))", "-2+3", LONG, "a[b", "p+", "\\|"),
)
SUITE, TASK = "\x1b]0;title\x07", "classification"


@pytest.fixture
def told(store, catalog):
    """Files, console text and page of a folder whose names are all hostile."""
    provenance = Provenance(
        code="\x1b[2J",
        versions={"torch": "\x1b[1m"},
        hardware={"processor": "\x9b1m"},
        device="\x07",
        threads=1,
        git={},
    )
    notice = Notice(category="c\x1b", message="\x1b[5m", where="w", count=1)
    shared = {"suite": SUITE, "provenance": provenance, "warnings": [notice]}
    for place, name in enumerate(NAMES):
        model = NAMES[place % 3]
        for method, lost in (("float", 1), (name, 10 + place)):
            made = fake.record(method, model=model, bits="W4A4", **shared)
            fake.save(store, made, fake.outcome(90 - lost, 0), fake.picture("x"))
        parts = {"source:psaq": {name: name}, "calibrator:minmax": {}}
        for preset in ("quick", name):
            made = fake.record("psaq+minmax", model=model, options={"preset": preset, "parts": parts}, **shared)
            fake.save(store, made, fake.outcome(80, place))
        failure = Failure(type="E\x1b", message=f"{name}\nsecond", traceback="\x1b")
        store.save(fake.failed(name, 1, model=model, **shared).model_copy(update={"failure": failure}))
        skipped = {"status": "skipped", "reason": name, "metrics": {}, "quantization": None}
        store.save(fake.record(f"s{place}", model=model, **skipped, **shared))
    output = io.StringIO()
    results = write_report(store, store.folder, None, Console(file=output, width=200), catalog)
    assert store.sentences() == []
    return store, output.getvalue(), page(results, Images(store.images, store.snapshots, store.pictures), None, 1)


def unseen(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


class Tags(HTMLParser):
    """Counts what a browser would run or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name) for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]
        self.found += [(tag, "")] * (tag == "script")


@pytest.mark.slow
def test_k5_hostile_names_are_text_in_every_file(told):
    """FAULTS K5 "a method option or model name with `$…$`, ANSI escapes, `=cmd`, `<script>`"."""
    store, output, html = told
    assert not unseen(output)
    assert not unseen(html)
    tags = Tags()
    tags.feed(html)
    assert set(tags.found) <= {("script", "")}
    assert html.count("<script") == len([tag for tag in tags.found if tag[0] == "script"]) <= 2
    folder = store.folder / "report"
    assert {path.suffix for path in folder.iterdir()} >= {".md", ".csv", ".tex", ".png", ".svg"}
    for text in (output, html, *((folder / f"comparison.{kind}").read_text("utf-8") for kind in ("md", "csv", "tex"))):
        assert LONG in text  # as a whole, wherever it is told
    for path in folder.iterdir():
        if path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8")
        assert not unseen(text), path.name
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "@", "-2+3"))]
        if path.suffix == ".md":
            rows = [line.replace("\\\\", "").replace("\\|", "") for line in text.splitlines() if line.startswith("| ")]
            blocks = [line for line in text.splitlines() if line.lstrip().startswith("<")]
            assert rows and not blocks
            assert "<script" not in text.replace("\\<", "")
            assert "](" not in text


def test_k5_models_of_any_length_have_figures_of_their_own(tmp_path):
    """Names of files have 255 bytes at most; a model's may have as many as a path to a checkpoint has."""
    names = ["x" * 3000, "x" * 3000 + "y", "é" * 200, "é" * 200 + "/", "x" * 160, "x" * 161, "$" * 300]
    paths = [save(Figure(figsize=(1, 1)), tmp_path, "iterations", name) for name in names]
    assert len(set(paths)) == len(names)
    assert set(tmp_path.iterdir()) == set(paths)
    assert max(len(os.fsencode(path.name)) for path in paths) <= 255
    assert save(Figure(figsize=(1, 1)), tmp_path, "iterations", names[0]) == paths[0]


@pytest.mark.fast(diagnostics={"sensitivity": {"layers": [1], "sizes": 3}})
@pytest.mark.parametrize(
    "diagnostics",
    [
        {"search": {"cycles": 3, "refreshes": "x"}},
        {"search": {"cycles": {"fitness": ["a", None], "diversity": 1}}},
        {"sensitivity": {"layers": {"l": [1, 2]}, "widths": []}},
        {"sensitivity": {"layers": [1], "sizes": 3}},
        {"sensitivity": {"layers": {"l": "x"}, "widths": [2]}},
    ],
    ids=json.dumps,
)
def test_k5_odd_diagnostics_cost_their_own_figures_only(store, catalog, diagnostics):
    """FAULTS K5 "odd diagnostics in a record"."""
    fake.save(store, fake.record("float"), fake.outcome(91, 0))
    fake.save(store, fake.record("clamp", diagnostics=diagnostics), fake.outcome(90, 0))
    output = io.StringIO()
    results = write_report(store, store.folder, None, Console(file=output, width=200), catalog)
    assert (store.folder / "report" / "accuracy.png").exists()
    assert "| clamp" in output.getvalue()
    assert "of another form" in output.getvalue()
    assert page(results, Images(store.images, store.snapshots, store.pictures), None, 1)


@pytest.mark.slow
def test_k5_what_contradicts_itself_is_on_the_page_and_the_rest_of_the_report_is_made(store):
    """FAULTS K5 "a record that contradicts itself is named and left out", with damaged images and a damaged record."""
    fake.fill(store, models=["vit_a"], seeds=1, bits=["W8A8"])
    records = store.records()
    edited, imaged, broken = (r for r in records if r.cell.method in ("clamp", "psaq+minmax", "noise+minmax"))
    path = store.folder / f"{edited.key}.json"
    path.write_text(path.read_text().replace(f'"top1": {edited.metrics["top1"]}', '"top1": 99.5'))
    (store.folder / f"{imaged.key}.images.npz").write_bytes(b"PK")
    (store.folder / f"{broken.key}.json").write_text("[" * 9000)
    result = CliRunner().invoke(app, ["report", "--out", str(store.folder)])
    assert result.exit_code == 0, result.output
    html = (store.folder / "report" / "report.html").read_text()
    for text in (result.output, html):
        assert f"{edited.key}.json says top1 99.5000, but its outcomes give" in text
        assert f"{imaged.key}.images.npz is not the file that its record was saved with" in text
        assert f"{broken.key}.json cannot be read" in text
    assert "Files that cannot be used" in html
    cells = (store.folder / "report" / "cells.csv").read_text()
    assert (edited.key in cells, imaged.key in cells, broken.key in cells) == (False, True, False)
    assert np.isclose(float(imaged.metrics["top1"]), imaged.metrics["top1"])
