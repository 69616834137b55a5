"""Accuracy against cost, and time by stage: the numbers behind the figures, and what the figures say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harness.report.figures.exported import exported_figure
from harness.report.figures.pareto import front, pareto_figure
from harness.report.figures.stages import PARTS, stage_figure, stage_frame
from harness.report.frame import cells_frame
from harness.report.sections.exported import COLUMNS
from harness.report.summary import summarise
from harness.results.record import Quantization, Record, Stage
from harness.results.store import Store

from . import synthetic as fake


def sized(method: str, bits: str, mib: float, operations: int | None, **changes: object) -> Record:
    made = Quantization(
        weight_sites=1,
        activation_sites=1,
        weight_mib=mib,
        float_values=0,
        layers=[],
        activation_ranges={},
        bit_operations=operations,
    )
    return fake.record(method, bits=bits, quantization=made, **changes)


def summary_of(store: Store) -> pd.DataFrame:
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    return summarise(cells_frame(records, outcomes), outcomes)


def test_front_is_what_the_definition_says() -> None:
    cost = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, np.nan, 0.5])
    accuracy = np.array([50.0, 40.0, 50.0, 60.0, 60.0, np.nan, 99.0, 10.0])
    assert front(cost, accuracy).tolist() == [True, False, False, True, False, False, False, True]
    equal = np.array([1.0, 1.0])
    assert front(equal, equal).tolist() == [True, True]
    random = np.random.default_rng(0)
    x, y = random.integers(0, 6, 40).astype(float), random.integers(0, 6, 40).astype(float)
    plain = [
        not any(x[j] <= x[i] and y[j] >= y[i] and (x[j] < x[i] or y[j] > y[i]) for j in range(40)) for i in range(40)
    ]
    assert front(x, y).tolist() == plain


def test_pareto_figure_draws_every_point_and_the_front_of_data_free_methods(store: Store) -> None:
    fake.save(store, fake.record("float"), fake.outcome(91, 0))
    for bits, mib, operations, accuracy in (("W8A8", 1.2, 6 * 10**9, 90), ("W4A4", 0.6, 2 * 10**9, 60)):
        fake.save(store, sized("clamp", bits, mib, operations), fake.outcome(accuracy, 1))
        fake.save(store, sized("noise+minmax", bits, mib, operations), fake.outcome(accuracy - 20, 1))
        fake.save(store, sized("real+minmax", bits, mib / 2, operations), fake.outcome(95, 1))
    summary = summary_of(store)
    figure = pareto_figure(summary)
    assert figure is not None
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == (
        "size of all parameters (MiB)",
        "bit operations of an image (10⁹ BOPs)",
    )
    assert "400 images, 1 seed" in left.get_title(loc="left")
    (line,) = (drawn for drawn in left.lines if drawn.get_drawstyle() == "steps-post")
    assert list(line.get_xdata()) == [0.6, 1.2]  # the ceiling is smaller and better, but not data-free
    assert {text.get_text() for text in left.texts} == {"W8A8", "W4A4"}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["clamp", "noise+minmax", "real+minmax"]
    points = [drawn for drawn in right.lines if drawn.get_marker() not in ("None", "", None)]
    assert sorted(x for drawn in points for x in drawn.get_xdata()) == [2.0, 2.0, 2.0, 6.0, 6.0, 6.0]


def test_pareto_figure_needs_a_cost(store: Store) -> None:
    assert pareto_figure(summary_of(store)) is None
    fake.save(store, fake.record("clamp", quantization=None), fake.outcome(90, 0))
    assert pareto_figure(summary_of(store)) is None


def test_exported_figure_leaves_out_what_is_wrong_and_stars_the_float_model() -> None:
    same = {"suite": "s", "scheme": "full", "runtime": "onnxruntime 1", "model": "vit", "metric": "top1", "images": 400}
    same |= {"float": 92.0, "float_bytes": 4 * 2**20, "float_cpu_ms": 8.0, "verdict": "equal"}
    rows = [
        {"method": "clamp", "bits": "W8A8", "real": 91.0, "bytes": 2**20, "cpu_ms": 4.0},
        {"method": "clamp", "bits": "W4A8", "real": 80.0, "bytes": 2**19, "cpu_ms": 4.0},
        {"method": "psaq", "bits": "W8A8", "real": 90.0, "bytes": 2**20, "cpu_ms": None},
        {"method": "repq", "bits": "W8A8", "real": 99.0, "bytes": 2**18, "cpu_ms": 1.0, "verdict": "wrong"},
    ]
    figure = exported_figure(pd.DataFrame([same | row for row in rows], columns=list(COLUMNS)))
    assert figure is not None
    time, size = figure.axes
    fronts = [drawn for axis in (time, size) for drawn in axis.lines if drawn.get_drawstyle() == "steps-post"]
    assert [list(drawn.get_xdata()) for drawn in fronts] == [[4.0], [0.5, 1.0]]
    stars = [drawn for axis in (time, size) for drawn in axis.lines if drawn.get_marker() == "*"]
    assert [set(drawn.get_xdata()) for drawn in stars] == [{8.0}, {4.0}]
    assert {text.get_text() for text in size.texts} == {"W8A8", "W4A8"}
    assert exported_figure(pd.DataFrame([same | rows[3]], columns=list(COLUMNS))) is None


def test_stage_frame_is_the_mean_over_precisions_and_its_parts_sum_up(store: Store) -> None:
    stages = {"load": 5.0, "synthesize": 4.0, "calibrate": 1.0, "unnamed": 0.5, "evaluate": 9.0}
    for bits, factor in (("W8A8", 1), ("W4A4", 3)):
        timed = {name: Stage(seconds=factor * seconds) for name, seconds in stages.items()}
        fake.save(store, fake.record("psaq+minmax", bits=bits, stages=timed), fake.outcome(90, 0))
    fake.save(store, fake.record("float"), fake.outcome(91, 0))
    (row,) = stage_frame(summary_of(store)).to_dict("records")
    assert (row["synthesize"], row["calibrate"], row["search"], row["other"]) == (8.0, 2.0, 0.0, 1.0)
    assert row["total"] == pytest.approx(sum(row[name] for name in PARTS)) == 11.0


def test_stage_figure_names_what_it_shows(store: Store) -> None:
    fake.fill(store, models=["vit_a"], seeds=2)
    figure = stage_figure(summary_of(store))
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "vit_a, scheme full: W4A4, W8A8; 2 seeds"
    assert axis.get_xlabel().startswith("time of quantizing (s)")
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["noise+minmax (floor)", "psaq+minmax", "real+minmax (ceiling)", "clamp *"]
    assert [text.get_text().strip() for text in axis.texts] == ["21.8 s"] * 3 + ["2,646.8 s"]
    assert stage_figure(summary_of(store).iloc[:0]) is None
