"""From records to the files of a report."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from harness.catalog.catalog import Catalog
from harness.report import stats, tables, write_report
from harness.report.figures.accuracy import accuracy_figure
from harness.report.figures.gallery import distinct, gallery_figure
from harness.report.frame import cells_frame, label_variants
from harness.report.results import load
from harness.report.summary import summarise
from harness.results.record import Layer, Quantization, Stage
from harness.results.store import Store

from . import synthetic as fake


def report(store: Store, out: Path, keys: set[str] | None = None) -> str:
    shown = io.StringIO()
    write_report(store, out, keys, Console(file=shown, width=80))
    return shown.getvalue()


def frames(store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    cells = cells_frame(records, outcomes)
    return cells, summarise(cells, outcomes)


def test_report_writes_every_file_and_prints_the_main_table(store: Store, tmp_path: Path) -> None:
    fake.fill(store)
    shown = report(store, tmp_path)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        *("comparison.md", "comparison.csv", "comparison.tex", "cells.csv", "accuracy.png", "accuracy.svg"),
        *("costs.md", "costs.csv", "costs.tex"),
        *(f"{kind}_{model}.png" for model in fake.MODELS for kind in ("gallery", "pareto", "stages")),
    }
    assert shown.strip() == (tmp_path / "report" / "comparison.md").read_text().strip()
    for path in (tmp_path / "report").glob("*.png"):
        Image.open(path).verify()


@pytest.mark.slow
def test_same_records_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"])
    contents = []
    for out in ("one", "two"):
        report(store, tmp_path / out)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / out / "report").iterdir()})
    assert contents[0] == contents[1]


def test_order_of_records_does_not_matter(store: Store) -> None:
    fake.fill(store, bits=["W8A8"])
    records = store.records()
    pd.testing.assert_frame_equal(cells_frame(records, {}), cells_frame(records[::-1], {}))


def test_keys_restrict_the_report(store: Store) -> None:
    fake.fill(store)
    keys = {r.key for r in store.records() if r.cell.model == "vit_a" and r.cell.bits in ("FP32", "W8A8")}
    results = load(store, Catalog.default(), keys)
    shown = tables.comparison(results.summary, results.cells)
    assert "vit_a" in shown
    assert "swin_b" not in shown
    assert "W4A4" not in shown
    assert set(results.cells["key"]) == keys


def test_summary_agrees_with_the_plain_formulas(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W4A4"])
    cells, summary = frames(store)
    by_method = summary.set_index("method")
    clamp, noise = (cells[cells["method"] == m].sort_values("seed") for m in ("clamp", "noise+minmax"))
    assert by_method.loc["clamp", "accuracy"] == pytest.approx(np.mean(clamp["accuracy"]))
    assert by_method.loc["clamp", "accuracy_sd"] == pytest.approx(np.std(clamp["accuracy"], ddof=1))
    assert by_method.loc["clamp", "delta"] == pytest.approx(
        np.mean(clamp["accuracy"]) - 100 * fake.outcome(91, 0).mean()
    )
    assert by_method.index[by_method["best"]].tolist() == ["clamp"]
    a, b = (np.stack([store.outcomes(key)["correct"] for key in frame["key"]]) for frame in (clamp, noise))
    found = stats.compare_outcomes(b, a)
    for column, value in (("p_value", found.p_value), ("to_best", found.difference), ("seed_error", found.seed_error)):
        assert by_method.loc["noise+minmax", column] == pytest.approx(value)
    tested = summary["p_value"].notna()
    assert set(summary.loc[~tested, "method"]) == {"float", "clamp"}
    chosen_of = len(fake.LOSSES)
    assert set(summary.loc[tested, "chosen"]) == {chosen_of}
    np.testing.assert_allclose(summary["p_holm"], stats.holm(stats.chosen(summary["p_value"], chosen_of)))


def test_real_data_and_float_are_never_the_best(store: Store) -> None:
    fake.save(store, fake.record("float"), fake.outcome(95, 0))
    for seed in range(3):
        fake.save(store, fake.record("real+minmax", seed), fake.outcome(94, 1 + seed))
        fake.save(store, fake.record("noise+minmax", seed), fake.outcome(80, 2 + seed))
    _, summary = frames(store)
    assert summary.loc[summary["best"], "method"].tolist() == ["noise+minmax"]
    text = tables.comparison(summary, cells_frame([], {}))
    assert re.search(r"real\+minmax \(ceiling\).*better [<\d.]+", text)


def test_tables_fit_a_terminal_and_rank_within_scheme_and_bits(store: Store) -> None:
    fake.fill(store, models=["a_long_model_name", "vit_a", "vit_b", "swin_c"], seeds=2)
    cells, summary = frames(store)
    text = tables.comparison(summary, cells)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, rows)) <= tables.WIDTH
    assert max(len(line) for line in tables.costs(summary).splitlines() if line.startswith("|")) <= tables.WIDTH
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert [title.split(",")[0] for title in titles] == ["## W8A8", "## W4A4"]
    second = text.split("## ")[2]
    methods = re.findall(r"^\| (\S+)", second, flags=re.MULTILINE)[2:7]
    assert methods == ["float", "real+minmax", "clamp", "psaq+minmax", "noise+minmax"]


def test_costs_show_refresh_only_where_there_is_one(store: Store) -> None:
    stages = {name: Stage(seconds=s) for name, s in {"load": 5.0, "search": 2.0, "other": 0.5, "evaluate": 9.0}.items()}
    fake.save(store, fake.record("clamp", stages=stages), fake.outcome(90, 0))
    summary = frames(store)[1]
    assert "refresh s" not in tables.costs(summary)
    assert re.search(r"\| search s \| total s \|.*\n.*\n\| clamp \* +\|.* 2\.0 \| +2\.5 \|", tables.costs(summary))
    stages["refresh"] = Stage(seconds=1.25)
    fake.save(store, fake.record("clamp", 1, stages=stages), fake.outcome(90, 1))
    summary = frames(store)[1]
    assert "refresh s" in tables.costs(summary)
    assert "- reconstruction: clamp\n" in tables.costs(summary)
    assert r"\toprule" in tables.costs_latex(summary)
    (row,) = pd.read_csv(io.StringIO(tables.costs_csv(summary))).to_dict("records")
    assert (row["refresh_s"], row["total_s"]) == (1.25, (2.5 + 3.75) / 2)


def test_effective_bits_are_shown_where_widths_do_not_tell(store: Store) -> None:
    plain = fake.record("psaq+minmax").quantization
    assert plain is not None

    def told(scale_bits: int) -> Quantization:
        layer = Layer(name="a", size=64, bits=4, scale_bits=scale_bits)
        sites = {
            "activation_bits": {"x": 8, "y": 8},
            "activation_formats": {"x": "int8/group32/e8m0", "y": "int8/tensor"},
        }
        scales = {"activation_scale_bits": {"x": 16, "y": 32}, "activation_scaled_values": {"x": 64}}
        return plain.model_copy(update={"layers": [layer], **sites, **scales})

    fake.save(store, fake.record("psaq+minmax", quantization=told(32)), fake.outcome(90, 0))
    fake.save(store, fake.record("noise+minmax", quantization=told(32)), fake.outcome(80, 0))
    cells, summary = frames(store)
    assert "eff. W/A |" not in tables.comparison(summary, cells)
    assert re.search(r"\| W eff\. \| A eff\. \|\n.*\n.*\| +4\.50 \| +8\.12 \|", tables.costs(summary))
    fake.save(store, fake.record("real+minmax", quantization=told(16)), fake.outcome(85, 0))
    cells, summary = frames(store)
    assert re.search(r"\| +eff\. W/A \|\n", tables.comparison(summary, cells))
    assert "4.50/8.12 |" in tables.comparison(summary, cells)
    assert "4.25/8.12 |" in tables.comparison(summary, cells)


def test_precisions_are_in_the_order_of_their_bits() -> None:
    found = ["MXFP4", "MXFP8E5M2A4", "W4A8", "MXFP6E3M2", "MXFP4A8", "W8A8", "MP4.5"]
    ordered = ["W8A8", "MXFP8E5M2A4", "MXFP6E3M2", "MP4.5", "W4A8", "MXFP4A8", "MXFP4"]
    assert sorted(found, key=lambda bits: (tables.bit_order(bits, most=True), bits != "W4A8")) == ordered


def test_failures_are_listed_and_leave_the_mean_incomplete(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"], seeds=2)
    store.save(fake.failed("psaq+minmax", 2))
    store.save(fake.failed("broken", 0))
    skipped = fake.record("clamp+odd", status="skipped", reason="makes no sense here", metrics={}, quantization=None)
    store.save(skipped)
    cells, summary = frames(store)
    shown = tables.comparison(summary, cells)
    assert re.search(r"psaq\+minmax .*\[2/3\]", shown)
    assert re.search(r"broken +\| failed", shown)
    assert r"- vit_a psaq+minmax W8A8 full, seed 2: ValueError: patches do not \| fit" in shown
    assert "- vit_a clamp+odd W8A8 full, seed 0: makes no sense here" in shown
    assert "second line" not in shown


def test_report_of_nothing_and_of_failures_only(store: Store, tmp_path: Path) -> None:
    assert "Nothing was measured" in report(store, tmp_path)
    store.save(fake.failed("clamp", 0))
    assert "1 failed" in report(store, tmp_path)
    assert not (tmp_path / "report" / "accuracy.png").exists()


def test_variants_of_one_name_stay_apart(store: Store) -> None:
    options = {"preset": "quick", "parts": {"method:clamp": {"steps": 20}}}
    right = fake.outcome(90, 0)
    fake.save(store, fake.record("float"), right)
    fake.save(store, fake.record("clamp"), right)
    fake.save(store, fake.record("clamp", options=options), right)
    fake.save(store, fake.record("psaq"), right)
    fake.save(store, fake.record("psaq", options={"preset": "paper", "parts": {}}), right)
    fake.save(store, fake.record("clamp", weights="others", model="vit_b"), right)
    fake.save(store, fake.record("clamp", limit=100, model="vit_b"), right[:100])
    cells, summary = frames(store)
    assert set(cells["method"]) == {"float", "clamp [steps=10]", "clamp [steps=20]", "psaq [quick]", "psaq [paper]"}
    assert set(cells["model"]) == {"vit_a", "vit_b@others", "vit_b@weights "}
    assert summary.groupby(["model", "limit"]).ngroups == 3


def test_tables_of_equal_images_under_two_limits_have_two_titles(store: Store) -> None:
    """A limit of as many images as there are takes the same ones as none, in cells of another key."""
    for limit in (None, fake.IMAGES):
        fake.save(store, fake.record("clamp", limit=limit), fake.outcome(80, 0))
    titles = [title for title, _ in tables.groups(frames(store)[1])]
    same = "W8A8, scheme full: classification on embedded, 400 images"
    assert titles == [f"{same} (--limit 400)", f"{same} (--limit all)"]


def test_latex_is_booktabs_and_escaped(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"])
    text = tables.latex(frames(store)[1])
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"vit\_a", r"$\pm$", r"\%"))
    assert text.isascii()


def test_the_best_of_every_model_is_bold_in_markdown_and_latex(store: Store) -> None:
    fake.fill(store, bits=["W4A4"])
    cells, summary = frames(store)
    best = summary[summary["best"]]
    assert len(best) == len(fake.MODELS)
    shown = [tables.accuracy(row) for row in best.to_dict("records")]
    assert re.findall(r"\*\*(\d.+?)\*\*", tables.comparison(summary, cells)) == shown
    assert re.findall(r"\\textbf\{(.+?)\}", tables.latex(summary)) == [s.replace("±", r"$\pm$") for s in shown]
    assert re.search(r"\| \*\*[^|]+\*\* *\| +-[\d.]+ \| best", tables.comparison(summary, cells))


def test_csv_keeps_full_precision(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"])
    cells, _ = frames(store)
    read = pd.read_csv(io.StringIO(tables.csv(cells)))
    np.testing.assert_array_equal(read["accuracy"], cells["accuracy"])


def test_unaligned_outcomes_are_not_tested(store: Store) -> None:
    fake.save(store, fake.record("clamp", limit=None), fake.outcome(90, 0))
    fake.save(store, fake.record("psaq+minmax", limit=None), fake.outcome(80, 0, images=300))
    _, summary = frames(store)
    assert summary["p_value"].isna().all()


def test_figure_has_a_panel_a_model_and_all_methods_once(store: Store) -> None:
    fake.fill(store, seeds=1, bits=["W8A8", "W4A8", "W4A4"])
    figure = accuracy_figure(frames(store)[1])
    assert isinstance(figure, Figure)
    assert [axis.get_title().split(",")[0] for axis in figure.axes] == ["swin_b", "vit_a"]
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["W4A4", "W4A8", "W8A8"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["float", *sorted(fake.LOSSES)]
    assert "400 images, 1 seed" in figure.axes[0].get_title()
    assert {axis.get_xlabel() for axis in figure.axes} == {"bits of weights (W) and activations (A)"}
    assert {axis.get_ylabel() for axis in figure.axes} == {"top-1 accuracy (%)"}


def test_lines_of_the_figure_join_precisions_that_differ_in_bits_alone(store: Store) -> None:
    bits = ["W4A4", "W8A8", "W4A8", "MP4.5", "MP6.5", "MXFP4A8", "MXFP8A8", "MXFP8E5M2A8"]
    fake.fill(store, models=["vit_a"], seeds=2, bits=bits)
    figure = accuracy_figure(frames(store)[1])
    assert isinstance(figure, Figure)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    found = {tuple(ticks[round(x)] for x in container[0].get_xdata()) for container in figure.axes[0].containers}
    assert found == {("W4A4", "W4A8", "W8A8"), ("MP4.5", "MP6.5"), ("MXFP4A8",), ("MXFP8A8",), ("MXFP8E5M2A8",)}
    assert len(figure.axes[0].containers) == 5 * len(fake.LOSSES)


def test_gallery_shows_equal_images_once_and_bits_only_where_they_matter() -> None:
    grey, other = fake.picture("a"), fake.picture("b")
    rows = distinct([("x", "W8A8", grey), ("x", "W4A4", other), ("y", "W8A8", grey), ("y", "W4A4", grey)])
    assert [label for label, _ in rows] == ["x W8A8\ny", "x W4A4"]
    ((label, _),) = distinct([(f"m{i}", "W8A8", grey) for i in range(9)])
    assert label.splitlines() == ["m0", "m1", "m2", "m3", "m4", "and 4 more"]
    colour = np.zeros((3, 224, 224, 3), dtype=np.uint8)
    assert isinstance(gallery_figure("m", [*rows, ("z", colour)]), Figure)


def test_float_models_alone_are_shown(store: Store) -> None:
    fake.save(store, fake.record("float"), fake.outcome(80, 0))
    out = io.StringIO()
    write_report(store, store.folder, console=Console(file=out))
    assert "- float vit_a: 79.50" in out.getvalue()
    assert "Nothing was measured" not in out.getvalue()


def test_an_option_that_was_not_there_yet_is_another_variant():
    """A record of before an option and one of after, where it is None, are not two seeds of one method."""
    old, new = '{"parts": {"a": {"x": 1}}}', '{"parts": {"a": {"x": 1, "lr": null}}}'
    assert label_variants(["m", "m"], [old, new]) == ["m [lr=absent]", "m [lr=None]"]


def test_one_method_has_one_name_in_tables_however_it_was_asked_for():
    options = {"preset": "quick", "parts": {"source:psaq": {"steps": 10}, "calibrator:minmax": {}}}
    usual = {"preset": "quick", "parts": {"source:psaq": {"steps": 25}, "calibrator:minmax": {}}}
    records = [
        fake.record("psaq", 0, options=options),
        fake.record("psaq[steps=10]", 1, options=options),
        fake.record("psaq", 0, options=usual),
    ]
    frame = cells_frame(records, {})
    assert sorted(zip(frame["method"], frame["seed"], strict=True)) == [
        ("psaq", 0),
        ("psaq[steps=10]", 0),
        ("psaq[steps=10]", 1),
    ]


def test_only_marks_that_a_table_has_are_explained(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"])
    _, summary = frames(store)
    explained = tables.notes(summary.assign(trains="", origin="published code"))
    assert not re.search(r"[†‡§]|`\*`|eff\. W/A", explained)
    assert "±" in explained
    assert all(text in explained for text in ("*floor*", "*ceiling*"))
    assert "±" not in tables.notes(summary.assign(seeds=1))
    assert "`‡`" in tables.notes(summary.assign(trains="weights"))
    assert "`†`" not in tables.notes(summary.assign(trains="weights"))
    assert "`*` marks" in tables.notes(summary.assign(origin="reconstruction"))


def test_of_one_seed_there_is_a_highest_and_no_best(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"], seeds=1)
    cells, summary = frames(store)
    text = tables.comparison(summary, cells)
    assert re.search(r"\| highest *\|", text)
    assert not re.search(r"\| best *\|", text)
