"""Interactive tables: the order of values and the texts are the same as in the other tables."""

from __future__ import annotations

import math
import re

from harness.report import tables
from harness.report.frame import cells_frame
from harness.report.page import grids
from harness.report.page.grids import Column, Grid, coded
from harness.report.results import assemble
from harness.report.sections import published
from harness.results.store import Store

from . import synthetic as fake
from .test_published_tables import measured, numbers


def column(grid: Grid, name: str) -> Column:
    (found,) = (each for each in grid.columns if each.name == name)
    return found


def texts(grid: Grid, name: str) -> list[str]:
    own = column(grid, name)
    return [own.levels[code] for code in own.codes]


def results(store: Store, catalog):
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    return assemble(records, outcomes, catalog)


def test_codes_follow_values_and_what_is_missing_comes_last() -> None:
    found = coded("x", ["9.0", "10.0", "failed", "-1.0", "9.0", "–"], [9.0, 10.0, math.nan, -1.0, 9.0, None])
    assert found.levels == ["-1.0", "9.0", "10.0", "failed", "–"]
    assert found.known == 3
    assert [found.levels[code] for code in found.codes] == ["9.0", "10.0", "failed", "-1.0", "9.0", "–"]


def test_values_that_look_the_same_keep_their_order() -> None:
    found = coded("x", ["1.00", "1.00"], [1.002, 1.001])
    assert found.codes == [1, 0]


def test_results_are_those_of_the_comparison_tables(store: Store, catalog) -> None:
    fake.fill(store)
    fake.save(store, fake.record("qdrop", trains="quantizers"), fake.outcome(70, 1))
    summary = results(store, catalog).summary
    grid = grids.results_grid(summary)
    assert grid.rows == len(summary)
    shown = list(zip(*(texts(grid, name) for name in ("bits", "model", "method")), strict=True))
    first = [method for bits, model, method in shown if (bits, model) == ("W8A8", "vit_a")]
    table = tables.comparison_table(summary[summary["bits"] == "W8A8"])
    assert first == [label for label in table.index if table.loc[label, ("vit_a", "")] != tables.NONE]
    assert {"clamp *", "qdrop †", "noise+minmax (floor)", "real+minmax (ceiling)"} <= set(first)
    for bits, group in summary.groupby("bits"):
        table = tables.comparison_table(group)
        own = [place for place, row in enumerate(shown) if row[0] == bits]
        for name, level in (("top-1 accuracy (%)", ""), ("vs best", "vs best")):
            values = texts(grid, name)
            assert [values[place] for place in own] == [table.loc[shown[p][2], (shown[p][1], level)] for p in own]
    assert set(texts(grid, "images")) == {"400"}
    assert set(texts(grid, "seeds")) == {"3", "1", "1/3"}  # the float model has one, qdrop one of three


def test_bits_and_accuracies_sort_as_numbers(store: Store, catalog) -> None:
    for place, bits in enumerate(("W8A8", "W4A8", "MP4.5", "W4A4", "W16A16")):
        fake.save(store, fake.record("clamp", bits=bits), fake.outcome((5, 100, 20, 9, 80)[place], 1))
    grid = grids.results_grid(results(store, catalog).summary)
    assert column(grid, "bits").levels == ["W4A4", "W4A8", "MP4.5", "W8A8", "W16A16"]
    values = [float(text.strip("*")) for text in column(grid, "top-1 accuracy (%)").levels]
    assert values == sorted(values)
    assert column(grid, "top-1 accuracy (%)").numeric


def test_every_cell_is_there_with_its_reason(store: Store, catalog) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8"], seeds=2)
    store.save(fake.failed("broken", 0))
    grid = grids.cells_grid(results(store, catalog).cells)
    assert grid.rows == 1 + 4 * 2 + 1
    assert "ValueError: patches do not | fit" in texts(grid, "reason")
    place = texts(grid, "method").index("broken")
    assert (texts(grid, "status")[place], texts(grid, "top-1 accuracy (%)")[place]) == ("failed", "failed")
    assert [c.name for c in grid.columns if c.filtered] == ["model", "bits", "scheme", "status", "task", "role"]


def test_several_suites_and_metrics_get_a_column(store: Store, catalog) -> None:
    fake.save(store, fake.record("clamp"), fake.outcome(90, 0))
    detection = fake.record("clamp", suite="other", task="detection", primary_metric="box_ap", metrics={"box_ap": 30.0})
    store.save(detection, None)
    found = assemble(store.records(), {}, catalog)
    grid = grids.results_grid(found.summary)
    assert column(grid, "suite").filtered
    assert sorted(texts(grid, "metric")) == ["box_ap", "top1"]
    assert column(grid, "result (points)").known == 2


def test_nothing_measured_makes_empty_tables(catalog) -> None:
    found = assemble([], {}, catalog)
    assert grids.results_grid(found.summary).rows == 0
    assert grids.cells_grid(found.cells).rows == 0


def test_published_numbers_have_both_values_apart() -> None:
    given = numbers({"method": "FDD-DFQ", "value": 72.44, "source": "another"}, {})
    records = [measured("psaq", value, seed, bits="W4A8") for seed, value in enumerate((72.0, 74.0))]
    frame = published.beside(given, published.measured(records, cells_frame(records, {})))
    grid = grids.published_grid(frame)
    assert texts(grid, "published") == ["73.23", "72.44"]
    assert texts(grid, "reproduced") == ["73.00 ± 1.41", tables.NONE]
    assert texts(grid, "difference") == ["-0.23", tables.NONE]
    assert texts(grid, "measured as") == ["psaq, quick", ""]
    assert all(re.fullmatch(r"\[\d\]", text) for text in texts(grid, "source"))
