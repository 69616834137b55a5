"""From records of sources crossed with calibrators to the cross table."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from harness.identity.names import parse_name
from harness.report import stats, tables, write_report
from harness.report.figures.cross import cross_figure
from harness.report.figures.files import save
from harness.report.frame import cells_frame
from harness.report.sections import cross
from harness.report.summary import summarise
from harness.results.record import Record
from harness.results.store import Store

from . import synthetic as fake

SOURCES = {"noise": 30.0, "psaq": 13.0, "clamp": 11.5, "real": 10.0}  # -> accuracy lost
CALIBRATORS = {"minmax": 10.0, "omse": 2.0, "ema": 8.0}


def crossed(source: str, calibrator: str, seed: int = 0, *, preset: str = "quick", **changes: Any) -> Record:
    """A record whose name is canonical: min-max is every source's partner, clamp is a method too."""
    own, other = parse_name(source)[0], parse_name(calibrator)[0]
    usual = calibrator == "minmax" and own.name != "clamp"
    parts = {f"source:{own.name}": {"steps": 10, **own.changes}, f"calibrator:{other.name}": {**other.changes}}
    values = {"options": {"preset": preset, "parts": parts}, "bits": "W4A4", **changes}
    origin = "reconstruction" if own.name == "clamp" else "baseline"
    values["trains"] = "quantizers" if other.name == "ema" else ""
    return fake.record(source if usual else f"{source}+{calibrator}", seed, origin=origin, **values)


def fill(store: Store, models: Sequence[str] = ("vit_a",), seeds: int = 2, **changes: Any) -> None:
    for model in models:
        fake.save(store, fake.record("float", model=model), fake.outcome(91, 0))
        for source, lost in SOURCES.items():
            for calibrator, more in CALIBRATORS.items():
                for seed in range(seeds):
                    own = crossed(source, calibrator, seed, model=model, **changes)
                    fake.save(store, own, fake.outcome(91 - lost - more, seed))


def report(store: Store, out: Path) -> Path:
    write_report(store, out, None, Console(file=io.StringIO(), width=80))
    return out / "report"


def made(store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    cells, names = cells_frame(records, outcomes), {r.key: r.cell.method for r in records}
    return cross.crosses(cells, summarise(cells, outcomes), outcomes, names), cells


def rows_of(text: str) -> list[list[str]]:
    """Cells of the first table of Markdown, the rule left out."""
    lines = text.split("## ")[1].splitlines()
    table = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")]
    return [table[0], *table[2:]]


@pytest.mark.slow
def test_the_files_of_a_cross(store: Store, tmp_path: Path) -> None:
    fill(store, models=fake.MODELS, seeds=3)
    folder = report(store, tmp_path)
    names = {path.name for path in folder.glob("cross*")}
    assert names == {"cross.md", "cross.csv", "cross.tex", *(f"cross_{model}.png" for model in fake.MODELS)}
    for path in folder.glob("cross*.png"):
        Image.open(path).verify()
    text = (folder / "cross.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {model}, W4A4, scheme full: classification on embedded, 400 images, top-1 accuracy (%)"
        for model in ("swin_b", "vit_a")
    ]
    header, *body = rows_of(text)
    assert header == ["source", "omse", "ema †", "minmax", "mean"]
    assert [row[0] for row in body] == ["noise (floor)", "clamp *", "psaq", "real (ceiling)", "mean"]
    assert all(re.fullmatch(r"\*\*[\d.]+ ± [\d.]+\*\*", cell) for cell in body[1][1:4])
    latex = (folder / "cross.tex").read_text()
    assert latex.isascii()
    assert latex.count(r"\textbf{") == 2 * 3
    assert r"$\pm$" in latex
    csv = pd.read_csv(folder / "cross.csv")
    assert len(csv) == 2 * len(SOURCES) * len(CALIBRATORS)
    assert csv.groupby(["model", "calibrator"])["best"].sum().eq(1).all()
    told = csv[csv["model"] == "swin_b"].set_index(["source", "calibrator"])["p_holm"] < 0.05
    for row, source in ((body[0], "noise"), (body[2], "psaq"), (body[3], "real")):
        for cell, calibrator in zip(row[1:4], ("omse", "ema", "minmax"), strict=True):
            assert re.fullmatch(r"[\d.]+ ± [\d.]+" + ("" if told[source, calibrator] else " ="), cell)
    assert told.any()
    assert not told.drop("clamp").all()  # both kinds occur


def test_same_records_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    fill(store)
    contents = []
    for _ in range(2):
        frame, cells = made(store)
        path = save(cross_figure(frame), tmp_path, "cross", "vit_a")
        contents.append([cross.markdown(frame, cells), cross.csv(frame), cross.latex(frame), path.read_bytes()])
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # something is drawn
        path.unlink()
    assert contents[0] == contents[1]


def test_the_numbers_are_the_plain_formulas(store: Store) -> None:
    fill(store, models=fake.MODELS)
    frame, cells = made(store)
    own = frame[frame["model"] == "vit_a"].set_index(["source", "calibrator"])
    right = {
        name: np.stack([store.outcomes(key)["correct"] for key in rows.sort_values("seed")["key"]])
        for name, rows in cells[(cells["model"] == "vit_a") & (cells["role"] != "float")].groupby("method")
    }
    for calibrator in CALIBRATORS:
        best = right[own.loc[("clamp", calibrator), "method"]]
        assert own.loc[("clamp", calibrator), "best"]
        assert np.isnan(own.loc[("clamp", calibrator), "p_value"])
        for source in ("noise", "psaq", "real"):
            row = own.loc[(source, calibrator)]
            theirs = right[row["method"]]
            assert row["accuracy"] == pytest.approx(100 * theirs.mean())
            assert row["accuracy_sd"] == pytest.approx(100 * theirs.mean(axis=1).std(ddof=1))
            assert row["p_value"] == pytest.approx(stats.compare_outcomes(theirs, best).p_value)
            assert row["to_best"] == pytest.approx(100 * (theirs.mean() - best.mean()))
    for _, table in frame.groupby("model"):
        assert set(table.loc[table["p_value"].notna(), "chosen"]) == {4}
        np.testing.assert_allclose(table["p_holm"], stats.holm(stats.chosen(table["p_value"], 4)))
        assert table["p_value"].notna().sum() == 9
    _, *body, last = rows_of(cross.markdown(frame[frame["model"] == "vit_a"], cells))
    for row, source in zip(body, ("noise", "clamp", "psaq", "real"), strict=True):
        assert float(row[-1]) == pytest.approx(own.loc[source, "accuracy"].mean(), abs=0.005)
    assert float(last[1]) == pytest.approx(own.xs("omse", level=1)["accuracy"].mean(), abs=0.005)


def test_real_data_is_never_the_best(store: Store) -> None:
    fill(store)
    frame, _ = made(store)
    top = frame.groupby("calibrator")["accuracy"].transform("max")
    assert set(frame.loc[frame["accuracy"] == top, "source"]) == {"real"}
    assert set(frame.loc[frame["best"], "source"]) == {"clamp"}


def test_characters_that_are_not_seen_are_written_out(store: Store) -> None:
    """In the names of sources and calibrators, which are taken apart from those of methods."""
    for source in ("noise", "ps\u202eaq"):
        for calibrator in ("omse", "mi\u200bn"):
            fake.save(store, crossed(source, calibrator), fake.outcome(80, 0))
    frame, cells = made(store)
    assert set(frame["source"]) == {"noise", r"ps\u202eaq"}
    assert set(frame["calibrator"]) == {"omse", r"mi\u200bn"}
    assert not {"\u202e", "\u200b"} & set(cross.markdown(frame, cells))


def test_gaps_failures_and_margins(store: Store) -> None:
    """Means are over what every other one has too, so that no row gains by a missing calibrator."""
    for source, calibrators in {"noise": "minmax ema", "psaq": "minmax", "real": "minmax omse"}.items():
        for calibrator in calibrators.split():
            lost = SOURCES[source] + CALIBRATORS[calibrator]
            fake.save(store, crossed(source, calibrator), fake.outcome(91 - lost, 0))
    broken = crossed("psaq", "ema")
    store.save(fake.failed(broken.cell.method, 0, bits="W4A4", options=broken.cell.options))
    odd = crossed("psaq", "odd", status="skipped", reason="makes no sense here", metrics={}, quantization=None)
    store.save(odd)
    frame, cells = made(store)
    assert len(frame) == 7
    text = cross.markdown(frame, cells)
    header, noise, psaq, real, mean = rows_of(text)
    assert header == ["source", "ema", "omse", "minmax", "odd", "mean"]
    assert noise[2] == "–"
    assert psaq[1:5] == ["failed", "–", psaq[3], "skipped"]
    assert psaq[3].startswith("**")
    assert real[2].endswith(" ?")  # no data-free source to be compared with
    assert [row[-1] for row in (noise, psaq, real)] == [re.sub(r"[*=? ]", "", row[3]) for row in (noise, psaq, real)]
    assert mean[1:] == ["–", "–", "–", "–", ""]  # no source has all calibrators
    assert "## 1 failed" in text
    assert "makes no sense here" in text
    figure = cross_figure(frame)
    assert {"failed", "skipped", "–"} <= {found.get_text() for found in figure.axes[0].texts}


def test_one_of_either_is_no_cross_and_none_is_left(store: Store, tmp_path: Path) -> None:
    fake.fill(store, models=["vit_a"], seeds=1)
    for source in SOURCES:
        fake.save(store, crossed(source, "minmax"), fake.outcome(80, 0))
    fake.save(store, crossed("psaq", "omse", bits="W8A8"), fake.outcome(80, 0))
    fake.save(store, crossed("psaq", "omse", scheme="matmul"), fake.outcome(80, 0))
    (tmp_path / "report").mkdir()
    for name in ("cross.md", "cross.csv", "cross.tex", "cross_vit_a.png", "cross_gone.png"):
        (tmp_path / "report" / name).write_text("old")
    assert not list(report(store, tmp_path).glob("cross*"))


def test_variants_are_rows_and_columns_of_their_own_and_methods_are_left_out(store: Store) -> None:
    fake.save(store, fake.record("clamp", bits="W4A4"), fake.outcome(80, 0))
    for source in ("psaq", "psaq[steps=5]"):
        for calibrator in ("minmax", "minmax[weights=asymmetric]"):
            fake.save(store, crossed(source, calibrator), fake.outcome(80, 0))
    frame, cells = made(store)
    header, *body = rows_of(cross.markdown(frame, cells))
    assert header == ["source", "minmax", "minmax[weights=asymmetric]", "mean"]
    assert [row[0] for row in body] == ["psaq", "psaq[steps=5]", "mean"]
    assert set(frame["method"]).isdisjoint({"clamp"})


def test_presets_are_tables_of_their_own_and_other_options_rows(store: Store) -> None:
    fill(store, seeds=1)
    fill(store, seeds=1, preset="paper")
    for calibrator in ("minmax", "omse"):
        plain = crossed("psaq", calibrator)
        parts = {**plain.cell.options["parts"], "source:psaq": {"steps": 99}}
        own = fake.record(plain.cell.method, bits="W4A4", options={"preset": "quick", "parts": parts})
        fake.save(store, own, fake.outcome(70, 0))
    frame, cells = made(store)
    titles = re.findall(r"^## .*, (preset \w+)$", cross.markdown(frame, cells), flags=re.MULTILINE)
    assert titles == ["preset paper", "preset quick"]
    quick = frame[frame["preset"] == "quick"]
    assert set(quick["source"]) == {"noise", "psaq [steps=10]", "psaq [steps=99]", "clamp", "real"}
    assert set(frame.loc[frame["preset"] == "paper", "source"]) == set(SOURCES)


def test_without_outcomes_nothing_is_told_apart_or_equal(store: Store) -> None:
    fill(store, seeds=1)
    cells = cells_frame(store.records(), {})
    names = {record.key: record.cell.method for record in store.records()}
    text = cross.markdown(cross.crosses(cells, summarise(cells, {}), {}, names), cells)
    _, noise, clamp, *_ = rows_of(text)
    assert all(cell.endswith(" ?") for cell in noise[1:4])
    assert all(cell.startswith("**") for cell in clamp[1:4])


def test_many_calibrators_fit_a_terminal_and_keep_their_order(store: Store) -> None:
    for source in ("noise", "psaq"):
        for place in range(14):
            own = crossed(source, f"calibrator-{place:02}")
            fake.save(store, own, fake.outcome(80 - 2 * place, 0))
    frame, cells = made(store)
    lines = [line for line in cross.markdown(frame, cells).splitlines() if line.startswith("| ")]
    assert max(map(len, lines)) <= tables.WIDTH
    shown = [
        cell for line in lines if line.startswith("| source") for cell in re.findall(r"calibrator-\d\d|mean", line)
    ]
    assert shown == [*(f"calibrator-{place:02}" for place in range(14)), "mean"]


def test_the_heat_map_has_a_panel_a_precision_and_says_what_it_shows(store: Store) -> None:
    fill(store)
    fill(store, bits="W8A8", seeds=1)
    frame, _ = made(store)
    figure = cross_figure(frame)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left")]
    titles = [axis.get_title(loc="left") for axis in panels]
    assert [title.split(", ")[1] for title in titles] == ["W8A8", "W4A4"]
    assert all("400 images" in title for title in titles)
    assert [title.splitlines()[1] for title in titles] == ["1 seed", "2 seeds"]
    for axis in panels:
        assert [label.get_text() for label in axis.get_yticklabels()] == ["noise", "clamp", "psaq", "real"]
        bold = [text.get_position()[1] for text in axis.texts if text.get_fontweight() == "bold"]
        assert len(bold) == len(CALIBRATORS)
    assert "±" in panels[1].texts[0].get_text()
    assert "±" not in panels[0].texts[0].get_text()


def test_what_trains_is_a_calibrator_and_no_source() -> None:
    rows = pd.DataFrame(
        {"source": ["psaq"], "calibrator": ["qdrop"], "role": ["method"], "origin": [""], "trains": ["quantizers"]}
    )
    assert cross._labels(rows, "source") == {"psaq": "psaq"}
    assert cross._labels(rows, "calibrator") == {"qdrop": "qdrop †"}
