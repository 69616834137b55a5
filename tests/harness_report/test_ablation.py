"""From records of a method and its variants to the ablation's tables."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.identity.names import parse_name
from harness.report import stats, tables, write_report
from harness.report.frame import cells_frame
from harness.report.results import load
from harness.report.sections import ablation
from harness.report.summary import summarise
from harness.results.store import Store

from . import synthetic as fake

OPTIONS = {"steps": 10, "crossover": 0.5, "passes": 1}
LOSSES = {"clamp": 20.0, "clamp[steps=5]": 21.0, "clamp[crossover=0]": 40.0, "clamp[crossover=0,passes=3]": 20.0}
LABELS = {"clamp": {"clamp[steps=5]": "half the steps", "clamp[crossover=0]": "no crossover"}}


class Labelled(Catalog):
    """Plugins that are not needed: only their ablations are."""

    def ablations(self, text, preset="default", overrides=None):
        if text not in LABELS:
            raise UsageError("a variant")
        return LABELS[text]


CATALOG = Labelled(None, None, None, Catalog.default().tasks)


def options(name: str, preset: str = "quick", **others: object) -> dict:
    (part,) = parse_name(name)
    return {"preset": preset, "parts": {"method:clamp": {**OPTIONS, **others, **part.changes}}}


def fill(store: Store, models=fake.MODELS, seeds: int = 2, bits=("W4A4",), preset: str = "quick") -> None:
    for model in models:
        fake.save(store, fake.record("float", model=model), fake.outcome(91, 0))
        for width in bits:
            for name, loss in LOSSES.items():
                for seed in range(seeds):
                    own = fake.record(name, seed, model=model, bits=width, options=options(name, preset))
                    fake.save(store, own, fake.outcome(91 - loss, seed))


def made(store: Store) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    cells, names = cells_frame(records, outcomes), {r.key: r.cell.method for r in records}
    return ablation.ablations(cells, summarise(cells, outcomes), outcomes, names, LABELS), cells, names


def report(store: Store, out: Path) -> str:
    shown = io.StringIO()
    write_report(store, out, None, Console(file=shown, width=80), CATALOG)
    return shown.getvalue()


def table(store: Store) -> str:
    """What the report's ablation.md holds, without the rest of the report."""
    results = load(store, CATALOG, None)
    return ablation.markdown(results.switches, results.cells)


def test_the_report_of_an_ablation(store: Store, tmp_path: Path) -> None:
    fill(store, bits=("W4A4", "W8A8"))
    shown = report(store, tmp_path)
    folder = tmp_path / "report"
    text = (folder / "ablation.md").read_text()
    assert shown.strip() == text.strip()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        f"## clamp at {bits}, scheme full: classification on embedded, 400 images, top-1 accuracy (%)"
        for bits in ("W8A8", "W4A4")
    ]
    rows = [re.split(r" +\| ", line[2:])[0] for line in text.splitlines() if line.startswith("| ")]
    one = ["switch", "-" * len("crossover=0,passes=3"), "clamp * (base)", "half the steps", "no crossover"]
    assert rows == [*one, "crossover=0,passes=3"] * 2  # both models beside each other
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= tables.WIDTH
    assert re.search(r"no crossover +\| [\d.]+ ± [\d.]+ +\| +-[\d.]+ \| (?:worse [\d.<]+|=) +\| +21\.8 \|", text)
    latex = (folder / "ablation.tex").read_text()
    assert latex.isascii()
    assert r"\multicolumn{4}{c}{vit\_a}" in latex
    assert "clamp[crossover=0]" in (folder / "comparison.md").read_text()
    csv = pd.read_csv(folder / "ablation.csv")
    assert csv["variant"].tolist()[:2] == ["clamp", "clamp"]
    assert len(csv) == 2 * 2 * len(LOSSES)


def test_same_records_give_the_same_tables(store: Store) -> None:
    fill(store, models=["vit_a"])
    contents = []
    for _ in range(2):
        results = load(store, CATALOG, None)
        switches = results.switches
        contents.append([ablation.markdown(switches, results.cells), ablation.csv(switches), ablation.latex(switches)])
    assert contents[0] == contents[1]


def test_the_numbers_are_the_plain_formulas(store: Store) -> None:
    fill(store)
    frame, cells, _ = made(store)
    own = frame[frame["model"] == "vit_a"].set_index("variant")
    right = {
        name: np.stack([store.outcomes(key)["correct"] for key in rows.sort_values("seed")["key"]])
        for name, rows in cells[(cells["model"] == "vit_a") & (cells["status"] == "ok")].groupby("method")
    }
    for name in list(LOSSES)[1:]:
        assert own.loc[name, "delta"] == pytest.approx(100 * (right[name].mean() - right["clamp"].mean()))
        assert own.loc[name, "p_value"] == pytest.approx(stats.compare_outcomes(right[name], right["clamp"]).p_value)
    assert np.isnan(own.loc["clamp", "p_value"])
    assert own.loc["clamp", "delta"] == 0
    np.testing.assert_allclose(frame["p_holm"], stats.holm(frame["p_value"]))
    assert frame["p_value"].notna().sum() == 6


def test_without_variants_there_is_no_ablation_and_none_is_left(store: Store, tmp_path: Path) -> None:
    fake.fill(store, models=["vit_a"], seeds=1)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "ablation.md").write_text("old")
    assert report(store, tmp_path).startswith("# Comparison")
    assert not list((tmp_path / "report").glob("ablation.*"))


def test_beside_other_methods_the_comparison_is_shown(store: Store, tmp_path: Path) -> None:
    fill(store, models=["vit_a"])
    fake.save(store, fake.record("psaq+minmax", bits="W4A4"), fake.outcome(80, 0))
    assert report(store, tmp_path).startswith("# Comparison")
    assert "psaq" not in (tmp_path / "report" / "ablation.md").read_text()


def test_a_base_differs_by_the_brackets_only(store: Store) -> None:
    fill(store, models=["vit_a"], seeds=1)
    fill(store, models=["vit_a"], seeds=1, preset="paper")
    alone = fake.record("clamp[steps=7]", bits="W4A4", options=options("clamp[steps=7]", crossover=0.25))
    fake.save(store, alone, fake.outcome(80, 0))
    elsewhere = fake.record("clamp[steps=8]", bits="W6A6", options=options("clamp[steps=8]"))
    fake.save(store, elsewhere, fake.outcome(80, 0))
    frame, cells, names = made(store)
    assert set(frame["base"]) == {"clamp [quick]", "clamp [paper]"}
    assert len(frame) == 2 * len(LOSSES)
    assert frame.loc[frame["base"] == "clamp [paper]", "variant"].tolist() == list(LOSSES)
    assert not ablation.is_ablation(cells, names)


def test_crosses_and_failures(store: Store) -> None:
    own = {"preset": "quick", "parts": {"source:psaq": {"steps": 9}, "calibrator:minmax": {"weights": "symmetric"}}}
    other = {**own, "parts": {**own["parts"], "calibrator:minmax": {"weights": "asymmetric"}}}
    name = "psaq+minmax[weights=asymmetric]"
    for seed in range(2):
        fake.save(store, fake.record("psaq", seed, options=own), fake.outcome(80, seed))
    fake.save(store, fake.record(name, 0, options=other), fake.outcome(85, 0))
    store.save(fake.failed(name, 1, options=other))
    text = table(store)
    assert re.search(r"^\| minmax: weights=asymmetric \| [\d.]+ +\[1/2\] +\| +\+", text, flags=re.MULTILINE)
    assert "## 1 failed" in text


def test_a_base_that_failed_leaves_nothing_to_compare(store: Store) -> None:
    store.save(fake.failed("clamp", 0, options=options("clamp")))
    fake.save(store, fake.record("clamp[steps=5]", options=options("clamp[steps=5]")), fake.outcome(80, 0))
    text = table(store)
    assert re.search(r"^\| half the steps \| [\d.]+ +\| +– \| – ", text, flags=re.MULTILINE)
    assert re.search(r"^\| clamp \* \(base\) \| failed", text, flags=re.MULTILINE)
