from __future__ import annotations

import sys
import warnings

import pytest

from harness.run import notices
from harness.run.notices import noticed
from harness.run.runner import CellRunner


@pytest.fixture(autouse=True)
def _default_filters(monkeypatch):
    """pytest sets filters of its own; a run has none but the user's."""
    monkeypatch.setattr(sys, "warnoptions", [])


def test_each_is_kept_once_and_counted(monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    with noticed() as log:
        for _ in range(3):
            warnings.warn("again", UserWarning, stacklevel=1)
        warnings.warn("once\n  more", RuntimeWarning, stacklevel=1)
    assert [(n.category, n.message, n.count) for n in log.notices] == [
        ("UserWarning", "again", 3),
        ("RuntimeWarning", "once more", 1),
    ]
    assert all(n.where.startswith("harness/test_notices.py:") for n in log.notices)
    assert shown == ["again", "once\n  more"]  # every distinct one is still shown, once


def test_notes_to_developers_are_left_out():
    with noticed() as log:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert log.notices == []


def test_a_users_filters_are_respected(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with noticed() as log, pytest.raises(UserWarning):
            warnings.warn("now an error", stacklevel=1)
    assert log.notices == []


def test_filters_and_display_are_restored():
    before = list(warnings.filters), warnings.showwarning
    with pytest.raises(ValueError, match="inside"), noticed():
        raise ValueError("inside")
    assert (list(warnings.filters), warnings.showwarning) == before


def test_a_flood_of_different_ones_is_bounded(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *_: None)
    with noticed() as log:
        for i in range(notices.LIMIT + 7):
            warnings.warn(f"number {i}", stacklevel=1)
    assert len(log.notices) == notices.LIMIT + 1
    assert log.notices[-1].count == 7
    assert sum(notice.count for notice in log.notices) == notices.LIMIT + 7


@pytest.mark.parametrize(("method", "status"), [("toywarn", "ok"), ("toywarnraise", "failed")])
def test_a_cells_warnings_are_in_its_record(settings, toy_cell, method, status, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *_: None)
    runner = CellRunner(settings)
    record = runner.measure(toy_cell(method), lambda *_: None).record
    assert record.status == status
    (notice,) = record.warnings
    assert (notice.category, notice.message, notice.count) == ("UserWarning", "a toy warning", 2)
    # The log of one cell does not reach into the next.
    assert runner.measure(toy_cell("toynoise"), lambda *_: None).record.warnings == []
