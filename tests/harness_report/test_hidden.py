"""What the mean hides: measures against straightforward counts, and what is shown of records that say less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.catalog.catalog import Catalog
from harness.report.frame import cells_frame
from harness.report.results import load
from harness.report.sections import hidden
from harness.results.store import Store

from . import synthetic as fake

LABEL = np.array([0, 0, 0, 0, 1, 1, 1, 2])


def columns(prediction: list[int], confidence: list[float] | None = None) -> dict[str, np.ndarray]:
    found = {"label": LABEL, "prediction": np.array(prediction)}
    return found if confidence is None else found | {"confidence": np.array(confidence, dtype=np.float32)}


def test_measures_are_counts_of_images_and_classes() -> None:
    reference = columns([0, 0, 0, 1, 1, 1, 0, 2])  # 6 of 8
    own = columns([0, 0, 1, 0, 1, 2, 2, 0])  # 4 of 8
    found = hidden.measures(own, reference)
    assert found["accuracy"] == 50
    assert found["retention"] == pytest.approx(100 * 4 / 6)
    assert (found["lost"], found["gained"]) == (100 * 3 / 8, 100 * 1 / 8)
    assert found["changed"] == 100 * 5 / 8  # one wrong prediction became another
    assert (found["worst_class"], found["tail"]) == (0, 0)  # class 2, the one class of the tail
    assert found["worst_drop"] == 100
    assert "ece" not in found
    alone = hidden.measures(own, None)
    assert set(alone) == {"accuracy", "worst_class", "tail"}


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(500).astype(np.float32)
    right = generator.random(500) < confidence**2
    gaps = []
    for low in np.arange(hidden.BINS) / hidden.BINS:
        inside = (confidence >= low) & (confidence < low + 1 / hidden.BINS)
        if inside.any():
            gaps.append(inside.mean() * abs(confidence[inside].mean() - right[inside].mean()))
    assert hidden.calibration_error(confidence, right) == pytest.approx(100 * sum(gaps), abs=1e-3)
    assert hidden.calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0
    each = np.ones((1, 500))
    assert hidden.resampled_error(confidence, right, each)[0] == hidden.calibration_error(confidence, right)


def test_tail_is_of_five_percent_of_the_classes() -> None:
    label = np.repeat(np.arange(40), 10)
    prediction = np.where(np.arange(400) % 10 < np.minimum(label, 10), label, -1)
    found = hidden.measures({"label": label, "prediction": prediction}, None)
    assert found["tail"] == pytest.approx(5.0)  # classes 0 and 1 have 0 and 10 %


def test_the_bootstrap_has_the_spread_of_new_images() -> None:
    images = 2000
    generator = np.random.default_rng(1)
    label = np.zeros(images, dtype=int)
    was = generator.random(images) < 0.9
    right = np.where(generator.random(images) < 0.1, ~was, was)
    own, reference = ({"label": label, "prediction": np.where(r, 0, 1)} for r in (right, was))
    error = hidden.measures(own, reference, hidden.stats.resamples(images))["retention_error"]
    differences = (right.astype(float) - was * right.mean() / was.mean()) / was.mean()
    assert error == pytest.approx(100 * differences.std() / np.sqrt(images), rel=0.1)


def saved(store: Store, method: str, seed: int, frame: pd.DataFrame, **changes: object) -> None:
    right = frame["prediction"] == frame["label"]
    measured = fake.record(method, seed, limit=len(frame), metrics={"top1": 100 * float(right.mean())}, **changes)
    store.save(measured, frame.assign(correct=right))


def test_records_without_confidence_or_labels_show_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    float_frame = pd.DataFrame(columns([0, 0, 0, 1, 1, 1, 0, 2], [0.9] * 8))
    saved(store, "float", 0, float_frame)
    saved(store, "clamp", 0, pd.DataFrame(columns([0, 0, 1, 0, 1, 2, 2, 0], [0.5] * 8)))
    saved(store, "clamp", 1, pd.DataFrame(columns([0, 0, 0, 1, 1, 1, 0, 2])))  # as an older version saved it
    fake.save(store, fake.record("psaq", limit=8), np.arange(8) < 6)  # and one still older
    results = load(store, Catalog.default())
    frame = results.hidden
    assert frame["method"].tolist() == ["clamp", "clamp", "float"]
    old = frame[(frame["method"] == "clamp") & (frame["seed"] == 1)].iloc[0]
    assert np.isnan(old["ece"])
    assert (old["lost"], old["gained"], old["retention"]) == (0, 0, 100)
    ((title, table),) = hidden.split(frame)
    assert title.startswith("W8A8, scheme full: classification on embedded")
    assert table["method"].tolist() == ["float", "clamp *"]
    assert table["retention"].iloc[0] == ""
    assert table["ECE"].iloc[1].startswith("0.00")  # of the one seed that says it
    text = hidden.markdown(frame)
    assert "expected calibration error" in text


def test_the_report_writes_it_and_takes_it_away(tmp_path: Path) -> None:
    from harness.report import write_report

    store = Store(tmp_path)
    frame = pd.DataFrame(columns([0, 0, 0, 1, 1, 1, 0, 2], [0.9] * 8))
    saved(store, "float", 0, frame)
    saved(store, "clamp", 0, frame)
    quiet = Console(quiet=True)
    write_report(store, tmp_path, None, quiet)
    rows = pd.read_csv(tmp_path / "report" / "hidden.csv")
    assert rows["retention"].dropna().tolist() == [100, 100]
    write_report(store, tmp_path, set(), quiet)
    assert not (tmp_path / "report" / "hidden.csv").exists()


def test_corrupted_images_are_another_suite_to_a_report() -> None:
    """Each method is set beside the float model on the same corrupted images, and beside nothing else."""
    records = [fake.record(m, corruption=c) for m in ("float", "clamp") for c in ("", "jpeg:3")]
    cells = cells_frame(records, {})
    assert set(cells["suite"]) == {"embedded", "embedded, jpeg:3"}
    own = {r.key: columns([0, 0, 0, 1, 1, 1, 0, 2] if r.cell.corruption else LABEL.tolist()) for r in records}
    frame = hidden.hidden_frame(cells, own.__getitem__)
    assert frame.groupby("suite")["accuracy"].unique().map(list).to_dict() == {
        "embedded": [100.0],
        "embedded, jpeg:3": [75.0],
    }
    assert frame.loc[frame["method"] == "clamp", "retention"].tolist() == [100, 100]
