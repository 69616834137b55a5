"""The history's file, changes of level, and their figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import UsageError
from harness.report.figures.trend import trend_figure
from harness.results import history
from harness.results.history import Number, change_points
from harness.results.provenance import Revision

IMAGE = 0.05  # points of one image in 2,000


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results" / "history.csv"


@pytest.fixture
def add(path, toy_cell):
    """Appends a run with one value per precision; one commit per run."""

    def append(*values: float, environment: str = "e", label: str = "nightly") -> int:
        run = len(path.read_text().splitlines()) if path.exists() else 0
        revision = Revision(f"{run:02d}" + "a" * 38, f"2026-01-{run + 1:02d}T00:00:00+00:00", modified=False)
        cells = [toy_cell(bits=bits) for bits in ("W8A8", "W4A8")[: len(values)]]
        numbers = [Number(cell, "top1", value, 2000) for cell, value in zip(cells, values, strict=True)]
        return history.append(path, numbers, label, revision, environment)

    return append


def test_rows_are_kept_in_order(path, add):
    assert add(90.0, 80.0) == 2
    first = path.read_text()
    add(90.0, 79.5, label='a, "quoted" label')
    assert path.read_text().startswith(first)
    frame = history.read(path)
    assert list(frame.columns) == list(history.COLUMNS)
    assert frame["run"].tolist() == [1, 1, 2, 2]
    assert frame["value"].tolist() == [90.0, 80.0, 90.0, 79.5]
    assert frame["label"].iloc[-1] == 'a, "quoted" label'


def test_without_git_dates_are_empty(path, toy_cell):
    history.append(path, [Number(toy_cell(), "top1", 90.0, 40)], "x", None, "e")
    assert history.read(path)[["date", "commit"]].to_numpy().tolist() == [["", ""]]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "run,date\n1"])
def test_a_malformed_history_is_one_sentence(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        history.read(path)


def test_a_history_of_no_images_is_one_sentence(path, add):
    add(90.0)
    path.write_text(path.read_text().replace(",2000\n", ",0\n"))
    with pytest.raises(UsageError, match="a row is of no images"):
        history.read(path)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], []),
        ([90.0], []),
        ([90.0] * 10, []),
        ([90.0, 90.0, 90.0, 89.0, 89.0], [3]),
        ([90.0, 89.0], [1]),
        ([90.0, 90.0, 92.0, 92.0, 91.0, 91.0, 91.0], [2, 4]),
        ([90.0, 90.05, 90.0, 90.0, 90.05, 90.05, 90.0], []),
        ([90.0] * 9 + [89.0], [9]),
    ],
)
def test_change_points(values, found):
    assert change_points(values, IMAGE) == found


@given(st.integers(3, 20), st.integers(3, 20), st.floats(-5, 5).filter(lambda d: abs(d) > 1), st.integers(0, 99))
def test_one_step_in_small_noise_is_found(before, after, step, seed):
    noise = np.random.default_rng(seed).integers(-1, 2, before + after) * IMAGE
    values = np.repeat([90.0, 90.0 + step], [before, after]) + noise
    assert before in change_points(values, IMAGE)


@given(st.lists(st.integers(0, 40), max_size=12), st.floats(-50, 50))
def test_change_points_do_not_depend_on_the_level(images, level):
    values = np.array(images) * IMAGE
    assert change_points(values, IMAGE) == change_points(values + round(level), IMAGE)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_change_points_are_places_in_the_series(images):
    found = change_points(np.array(images) * IMAGE, IMAGE)
    assert found == sorted(set(found))
    assert all(0 < place < len(images) for place in found)


def test_the_command(cli, path, add, tmp_path):
    assert "there is no history" in cli("history", code=2).stderr
    for value, environment in ((80.0, "e"), (80.0, "e"), (78.5, "e"), (78.5, "f"), (78.5, "f")):
        add(90.0, value, environment=environment)
    output = cli("history", "--figure", "trend.svg").output
    assert "toy tiny toynoise W4A8 full seed 0: 80.00 → 78.50 in run 3 (nightly, commit 05aaaaaaaaaa)" in output
    assert "2 series over 5 runs, changes of level: 1." in output
    text = (tmp_path / "trend.svg").read_text()
    for part in (
        "tiny toynoise",
        "2,000 images, 1 seed",
        "change of top-1",
        "(80.00)",
        "-1.50",
        "run and commit",
        "W4A8",
    ):
        assert part in text
    assert ".png or .svg" in cli("history", "--figure", "trend.jpg", code=2).stderr
    path.write_text(path.read_text().splitlines()[0] + "\n")
    cli("history", code=4)


def test_a_change_in_a_new_environment_says_so(path, add):
    for value, environment in ((80.0, "e"), (80.0, "e"), (78.5, "f")):
        add(90.0, value, environment=environment)
    (change,) = [c for rows in history.series(history.read(path)) for c in history.changes(rows)]
    assert "the environment changed, too" in str(change)


def test_many_runs_are_numbered(path, add):
    for _ in range(14):
        add(90.0)
    figure = trend_figure(history.read(path))
    assert figure.axes[0].get_xlabel() == "run"


def test_an_added_row_begins_a_line(path, add):
    add(90.0)
    path.write_text(path.read_text().rstrip("\n"))
    add(90.0)
    assert len(history.read(path)["run"].unique()) == 2
