"""The gate on metrics that are not a share of right images: detection and segmentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.api.errors import UsageError
from harness.api.plugins import Metric
from harness.catalog.catalog import Catalog
from harness.plan.plan import Planned
from harness.regress.baseline import Baseline, Entry, Update, read_baseline, write_baseline
from harness.regress.environment import Environment
from harness.regress.judge import judge
from harness.regress.measure import Measurement, measurement
from harness.regress.outcomes import Dense
from harness.regress.pairing import pair
from harness.regress.show import Report, markdown
from harness.regress.suite import Case, read_suite
from harness.report import stats
from harness.results.record import Provenance, Record
from tasks.metrics.average_precision import average_precision_of
from tasks.metrics.mean_iou import mean_iou_of

ROOT = Path(__file__).parents[2]
HERE = Environment(versions={"torch": "2"}, hardware={"processor": "a"}, variables={}, device="cpu", threads=1)
ELSEWHERE = HERE.model_copy(update={"hardware": {"processor": "b"}})
UPDATE = Update(reason="why", commit="c" * 40, date="2026-01-02T00:00:00+00:00", modified=False)
IMAGES = 100


def confusions(lost: int = 0, images: int = IMAGES) -> pd.DataFrame:
    """Two classes, 100 pixels per image; in the first `lost` images ten pixels more are wrong."""
    rng = np.random.default_rng(0)
    rows = []
    for image in range(images):
        wrong = int(rng.integers(2, 12)) + 10 * (image < lost)
        rows.append([50 - wrong // 2, wrong // 2, wrong - wrong // 2, 50 - wrong + wrong // 2])
    return pd.DataFrame({"index": range(images), "confusion": rows})


def detections(order: tuple[int, ...] = (0, 1), shift: float = 0.0) -> pd.DataFrame:
    """Two images with an object and two detections each; `order` is that of the first image's hits."""
    hits = [1023, 0]
    return pd.DataFrame(
        {
            "index": [0, 1],
            "positives": [[1], [1]],
            "category": [[1, 1], [1, 1]],
            "score": [[0.9 + shift, 0.8 + shift], [0.7 + shift, 0.6 + shift]],
            "hits": [[hits[place] for place in order], hits],
            "ignored": [[0, 0], [0, 0]],
        }
    )


def measured(cell, frame: pd.DataFrame, **facts) -> Measurement:
    dense = Dense.of(frame, mean_iou_of(frame))
    return Measurement(cell, "miou", dense.resampled.value, dense, facts)


@pytest.fixture
def run(toy_cell):
    """The verdict on a case whose images changed."""

    def verdict(frame, environment=HERE, tolerance=1.0, own=None):
        case = Case(Planned(toy_cell(), "new", True, None, "tiny"), tolerance, 3.0, "r", None)
        entry = Entry.of(measured(case.cell, confusions())).model_copy(update={"environment": own})
        baseline = Baseline(environment=HERE, updates=(UPDATE,), cases={case.name: entry})
        (found,) = judge([case], baseline, {case.name: measured(case.cell, frame)}, {}, environment)
        return found

    return verdict


def test_equal_outcomes_pass_and_the_table_says_which_tolerance_applies(run):
    found = run(confusions())
    assert (found.status, found.paired.changed, found.paired.p_adjusted) == ("ok", 0, 1.0)
    assert (found.limits.tolerance, found.applies) == (1.0, "tight: same environment")
    assert found.sensitivity.net == 1.0
    text = markdown(Report("Gate", [found], [], UPDATE))
    assert "| – | – | 0 | 1.000 | 1 tight |" in text
    assert "Tolerances are tight: same environment (1 of 1 cases)." in text


def test_where_no_image_may_change_any_drop_is_seen(run):
    assert run(confusions(), tolerance=0.5).sensitivity.net == 0.0


@pytest.mark.parametrize(
    ("lost", "expected", "words"),
    [
        (1, "ok", ""),  # one image of a hundred, within the tolerance of 1 point
        (2, "fail", "2 images changed, more than the 1 that go with a tolerance of 1"),
        (60, "fail", "beyond the tolerance of 1 (60 images changed"),
    ],
)
def test_where_outcomes_repeat_changed_images_count_as_flips(run, lost, expected, words):
    found = run(confusions(lost))
    assert found.status == expected
    assert words in " ".join(found.problems)
    assert found.paired.changed == lost


@pytest.mark.parametrize(("lost", "expected"), [(5, "ok"), (10, "ok"), (60, "fail")])
def test_elsewhere_a_move_must_be_significant_and_changed_images_are_not_counted(run, lost, expected):
    found = run(confusions(lost), ELSEWHERE)
    assert found.status == expected
    assert (found.limits.tolerance, found.applies) == (3.0, "elsewhere: processor differs")
    assert found.sensitivity.true > found.sensitivity.net >= 3.0


def test_elsewhere_a_few_images_that_are_lost_whole_are_no_significant_move(run):
    frame = confusions()
    frame["confusion"] = [[0, 50, 50, 0] if image < 3 else own for image, own in enumerate(frame["confusion"])]
    found = run(frame, ELSEWHERE)
    assert found.paired.difference < -3.0
    assert found.status == "ok"
    assert "beyond its tolerance, but not significantly" in found.notes[0]
    assert run(frame).status == "fail"


def test_a_gain_fails_too(run, toy_cell):
    case = Case(Planned(toy_cell(), "new", True, None, "tiny"), 1.0, 3.0, "r", None)
    baseline = Baseline(
        environment=HERE, updates=(UPDATE,), cases={case.name: Entry.of(measured(case.cell, confusions(60)))}
    )
    (found,) = judge([case], baseline, {case.name: measured(case.cell, confusions())}, {}, HERE)
    assert "gain that nobody has explained" in found.problems[0]


def test_the_bootstrap_of_two_runs_is_paired():
    old, new = (Dense.of(frame, mean_iou_of(frame)) for frame in (confusions(), confusions(60)))
    found = pair(old, new)
    alone = np.hypot(old.resampled.draws.std(), new.resampled.draws.std())
    assert found.difference == pytest.approx(new.resampled.value - old.resampled.value)
    assert found.error < alone
    assert found.p < 1e-6
    assert pair(old, np.ones(IMAGES, dtype=bool)) is None
    assert pair(old, Dense.of(confusions(images=9), mean_iou_of(confusions(images=9)))) is None


def test_scores_that_are_rounded_otherwise_are_no_other_outcome():
    """A detection's score decides by its order alone, which the other columns and the metric show."""
    plain, shifted, swapped = (
        Dense.of(frame, average_precision_of(frame))
        for frame in (detections(), detections(shift=1e-7), detections((1, 0)))
    )
    assert (plain.digests == shifted.digests).all()
    assert (plain.digests != swapped.digests).tolist() == [True, False]
    assert plain.resampled.value > swapped.resampled.value


# The file


def test_dense_outcomes_survive_the_file(toy_cell, tmp_path):
    entry = Entry.of(measured(toy_cell(), confusions(), sites=3))
    name = "toy tiny toynoise W4A8 full seed 0"
    write_baseline(tmp_path / "b.json", Baseline(environment=HERE, updates=(UPDATE,), cases={name: entry}))
    again = read_baseline(tmp_path / "b.json").cases[name]
    assert again == entry
    first, second = again.outcomes(), measured(toy_cell(), confusions()).outcomes
    assert (first.digests == second.digests).all()
    assert (first.resampled.draws == second.resampled.draws).all()
    assert "correct" not in json.loads((tmp_path / "b.json").read_text())["cases"][name]
    assert (tmp_path / "b.json").stat().st_size < 5000


@pytest.mark.parametrize("change", ["value", "images", "digests", "draws", "both", "neither"])
def test_a_dense_baseline_edited_by_hand_is_refused(toy_cell, tmp_path, change):
    """A further member of FAULTS K5: the numbers of a baseline that contradict each other."""
    name = "toy tiny toynoise W4A8 full seed 0"
    entry = Entry.of(measured(toy_cell(), confusions()))
    write_baseline(tmp_path / "b.json", Baseline(environment=HERE, updates=(UPDATE,), cases={name: entry}))
    document = json.loads((tmp_path / "b.json").read_text())
    case = document["cases"][name]
    if change == "value":
        case["value"] += 2
    elif change == "images":
        case["images"] -= 1
    elif change == "both":
        case["correct"] = "AAAA"
    elif change == "neither":
        del case["dense"]
    else:
        case["dense"][change] = "BAAA" + case["dense"][change][4:]
    (tmp_path / "b.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="is not valid"):
        read_baseline(tmp_path / "b.json")


# Which tolerance applies


def test_k5_an_environment_added_to_one_entry_is_said(run):
    """FAULTS K5 "`environment` added to one baseline entry": loose tolerances while "tight" was printed."""
    found = run(confusions(20), own=ELSEWHERE)
    assert found.applies == "elsewhere: processor differs"
    text = markdown(Report("Gate", [found], [], UPDATE))
    assert "| 3 elsewhere |" in text
    why = "the baseline names an environment of its own for 'toy tiny toynoise W4A8 full seed 0'"
    assert f"Tolerances are elsewhere: processor differs (1 of 1 cases; {why})." in text


def test_k5_an_entry_of_this_environment_is_tight_whatever_the_baselines(run):
    """A further member: the entry's own environment is this one, the baseline's another."""
    found = run(confusions(2), ELSEWHERE, own=ELSEWHERE)
    assert (found.applies, found.status) == ("tight: same environment", "fail")


# Tasks


def test_a_dense_record_is_measured_as_its_task_says(toy_cell, store):
    frame, info = confusions(), Catalog.default().tasks.get("segmentation")
    value = stats.resample(mean_iou_of(frame), IMAGES).value
    cell = toy_cell()
    provenance = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)
    fields = {"key": cell.key, "cell": cell, "provenance": provenance, "started": "", "finished": ""}
    value += 1e-9  # the task's own way to compute it
    record = Record(**fields, status="ok", primary_metric="miou", metrics={"miou": value})
    store.save(record, frame)
    found = measurement(record, store, info)
    assert found.value == found.outcomes.resampled.value == value
    assert pair(Entry.of(found).outcomes(), found.outcomes).p == 1.0
    assert (found.outcomes.digests == measured(cell, frame).outcomes.digests).all()
    assert set(found.facts) == {"resamples"}
    with pytest.raises(UsageError, match="neither the share of images"):
        measurement(record, store, replace(info, metrics=(Metric("box_ap"),)))


def test_the_committed_dense_suite_says_what_it_tolerates():
    suite = read_suite(ROOT / "results" / "baselines" / "dense.toml")
    baseline = read_baseline(ROOT / "results" / "baselines" / "dense.json")
    assert {group.task for group in suite.cases} == {"detection", "segmentation"}
    assert all(isinstance(entry.outcomes(), Dense) for entry in baseline.cases.values())
    assert {entry.metric for entry in baseline.cases.values()} == {"box_ap", "miou"}
    assert {entry.images for entry in baseline.cases.values()} == {suite.limit}
    assert all(group.tolerance <= 1.0 <= group.elsewhere <= 5.0 for group in suite.cases)
    assert (ROOT / "results" / "baselines" / "dense.json").stat().st_size < 60_000


def test_built_in_tasks_know_their_metrics():
    assert {
        task.name: task.metrics[0].name for task in map(Catalog.default().tasks.get, ("classification", "detection"))
    } == {
        "classification": "top1",
        "detection": "box_ap",
    }
