"""Executors by name, the project's own and those of other packages."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path

import pytest
import switches
from rich.console import Console
from toy_sweep import TWO

from harness.api.errors import UsageError
from harness.api.plugins import RESOURCES
from harness.results.store import Store
from harness.run.display import Display
from harness.run.executors.base import Resources
from harness.run.executors.registry import divided, find_executor, open_executor
from harness.run.work import Work

RUNS = Path("results/runs/toy")


@pytest.fixture(autouse=True)
def as_before():
    """Cells run in this process set torch's switches."""
    with switches.put_back():
        yield


@pytest.fixture
def bench(cli, monkeypatch):
    monkeypatch.setattr("harness.report.write_report", lambda *_: None)
    return lambda *arguments, code=0: cli("bench", *TWO, *arguments, code=code)


def test_an_executor_of_another_package_gives_the_same_numbers_in_any_order(bench):
    bench("--executor", "toybackwards", "--out", "there")
    bench("--in-process", "--out", "here")
    there, here = ({r.key: (r.status, r.metrics) for r in Store(Path(out)).records()} for out in ("there", "here"))
    assert len(there) == 6  # two models: float, and two precisions
    assert there == here


def test_results_are_kept_as_they_come_and_the_line_says_how_many(bench):
    shown = bench("--executor", "toybackwards").output
    lines = [line for line in shown.splitlines() if line.startswith("[")]
    assert [line[:5] for line in lines] == [f"[{i}/6]" for i in range(1, 7)]
    assert "tiny2 toynoise W8A8" in lines[0]
    assert "tiny float" in lines[-1]


def test_cells_without_a_result_are_an_error(bench):
    assert "gave no result of 1 cells" in bench("--executor", "toyforgets", code=2).stderr
    assert len(list(Store(RUNS).records())) == 5
    bench("--in-process")
    assert len(list(Store(RUNS).records())) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "workre"], "unknown executor 'workre'; did you mean 'worker'?"),
        (["--executor", "worker", "--in-process"], "contradict each other"),
        (["--executor", "toybackwards", "--timeout", "3"], "--timeout: executor 'toybackwards' has no use for it"),
        *(
            (["--executor", name, *asked], message)
            for name in ("ray", "slurm")
            for asked, message in (
                (["--cpus", "2", "--threads", "8"], "--threads 8 and --cpus 2 contradict each other; give no more"),
                (["--device", "cpu", "--gpus", "1"], "--device cpu and --gpus 1 contradict each other; leave one out"),
            )
        ),
        (["--executor", "slurm", "--slurm", "time=5,time=9"], "--slurm gives time twice, 5 and 9; leave one out"),
        (["--executor", "slurm", "--slurm", "mem-per-cpu=1G,mem_per_cpu=2G"], "--slurm gives mem-per-cpu twice"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_before_anything_runs(bench, arguments, message):
    assert message in bench(*arguments, code=2).stderr
    assert not RUNS.exists()


def test_hosts_elsewhere_have_a_thread_for_each_cpu_unless_told_fewer():
    for threads, cpus, found in ((None, 4, 4), (2, 4, 2), (4, 4, 4), (8, None, 8), (None, None, 1)):
        assert divided("slurm", "auto", Resources(cpus=cpus, gpus=1), threads)[1] == found


def test_executors_may_accept_all_that_users_can_say():
    assert tuple(each.name for each in fields(Resources)) == RESOURCES


def test_what_the_projects_own_can_do():
    assert find_executor("worker", Resources(timeout=3, jobs=2)).accepts == ("timeout", "jobs")
    with pytest.raises(UsageError, match=r"--timeout: executor 'in-process' has no use for it; .*--executor worker"):
        find_executor("in-process", Resources(timeout=3))


def test_an_executor_is_closed_and_used_again(settings, toy_cell):
    executor = open_executor("in-process", settings)
    told = []
    for cell in (toy_cell("float"), toy_cell()):
        (measured,) = executor.map(Work([cell]), lambda *what: told.append(what))
        assert measured.record.key == cell.key
        assert told[0] == (cell, "", 0.0)
        assert all(each == cell for each, *_ in told)
        told.clear()
    executor.close()


def test_the_time_left_is_shared_by_cells_that_run_side_by_side(toy_cell):
    text = io.StringIO()
    cells = [toy_cell(seed=seed) for seed in range(4)]
    with Display(Console(file=text, force_terminal=True, width=160), cells, lambda _: 600.0) as display:
        display.progress(cells[0], "calibrate", 0.5)
        display.progress(cells[1], "calibrate", 0.5)
    shown = text.getvalue()
    assert "about 20 min 00 s left" in shown


def test_only_cells_that_the_plan_gives_images_share_them(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("harness.run.sweep.Work", lambda *given: seen.append(given) or Work(*given))
    bench("--in-process")
    (_, _, images, _), *_ = seen
    assert len({*images.values()} - {""}) == 1  # the noise of both models and precisions has one name
    assert sum(not name for name in images.values()) == 2  # float references


@pytest.mark.slow
def test_several_jobs_give_the_records_of_one(bench, cli):
    shown = bench("--jobs", "3", "--threads", "1", "--out", "three").output
    assert "3 cells at a time, each with 1 thread" in shown
    assert len([line for line in shown.splitlines() if line.startswith("[")]) == 6
    bench("--jobs", "1", "--threads", "1", "--out", "one")
    three, one = Store(Path("three")), Store(Path("one"))
    of_one = {record.key: record for record in one.records()}
    assert len(of_one) == 6
    assert all(three.agrees(record, of_one[record.key], one) for record in three.records())
    assert of_one.keys() == {record.key for record in three.records()}


@pytest.mark.slow
def test_one_of_several_workers_may_die(settings, toy_cell):
    """The others go on, and the next cell gets a new worker."""
    cells = [toy_cell("toydie"), *(toy_cell(seed=seed) for seed in range(4))]
    jobs = open_executor("worker", settings, Resources(jobs=2))
    try:
        found = {m.record.key: m.record for m in jobs.map(Work(cells), lambda *_: None)}
    finally:
        jobs.close()
    assert found[cells[0].key].failure.type == "WorkerDied"
    assert [found[cell.key].status for cell in cells[1:]] == ["ok"] * 4


@pytest.mark.slow
def test_workers_end_with_their_executor(settings, toy_cell):
    jobs = open_executor("worker", settings, Resources(jobs=2))
    running = jobs.map(Work([toy_cell(seed=seed) for seed in range(4)]), lambda *_: None)
    next(running)
    processes = [worker._process for worker in jobs._workers.values()]
    jobs.close()
    assert not any(process.is_alive() for process in processes if process)
