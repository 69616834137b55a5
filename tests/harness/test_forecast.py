"""How long a plan is said to take."""

from __future__ import annotations

import pytest

from harness.plan.estimate import Basis
from harness.plan.plan import Plan, Planned
from harness.run.forecast import sentences, wall

HERE = frozenset({"this one"})
HOUR = 3600.0


@pytest.fixture
def plan(toy_cell):
    def make(*estimates: float | None, machines=HERE, other_models=False) -> Plan:
        cells = []
        for seed, seconds in enumerate(estimates):
            basis = None if seconds is None else Basis(frozenset(machines), other_models)
            cells.append(Planned(toy_cell("toynoise", seed=seed), "new", True, seconds, "tiny", basis=basis))
        return Plan(tuple(cells))

    return make


def test_one_job_takes_the_sum(plan):
    assert sentences(plan(60.0, 120.0), 1, HERE) == ["2 of 2 cells to run, about 3 min 00 s."]


def test_several_jobs_take_less_but_not_less_than_the_longest_cell(plan):
    (text,) = sentences(plan(*[HOUR] * 12), 8, HERE)
    assert text == "12 of 12 cells to run, about 12 h 00 min with one job, 2 h 00 min with 8."
    assert wall([HOUR, 60.0, 60.0], 64) == HOUR
    assert wall([3.0, 3.0, 2.0, 2.0, 2.0], 2) == 7.0


def test_where_the_number_of_hosts_is_open_some_are_shown(plan):
    (text,) = sentences(plan(*[HOUR] * 128), None, HERE)
    assert text.endswith("about 128 h 00 min with one job, 16 h 00 min with 8, 2 h 00 min with 64.")


def test_what_was_never_measured_is_said(plan):
    (text,) = sentences(plan(60.0, None), 2, HERE)
    assert "plus 1 without an estimate" in text
    (text,) = sentences(plan(None, None), 2, HERE)
    assert "no time estimate" in text
    assert "--seeds 1" in text


def test_times_of_other_machines_and_models_are_labelled(plan):
    _, text = sentences(plan(60.0, machines=["NVIDIA H200"]), 1, HERE)
    assert "NVIDIA H200" in text
    _, text = sentences(plan(60.0, 60.0, other_models=True), 1, HERE)
    assert text.startswith("2 of the estimates are those of the same method on other models")
    _, text = sentences(plan(60.0), None, None)  # hosts that nobody knows
    assert "this one" in text


def test_nothing_to_run(plan):
    assert sentences(Plan(()), 4, HERE) == ["0 cells, all of them done: nothing to run."]
