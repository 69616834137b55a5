"""Trackers, played by modules that only note what they are told."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from toy_sweep import TOY

from harness.results.store import Store
from harness.run.sinks import SINKS, Reporter, open_sink

BENCH = ["bench", *TOY, "--models", "tiny", "--threads", "1", "--in-process", "--bits", "W4A8"]


class Run:
    def __init__(self, calls):
        self.calls = calls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls.append(("end",))


@pytest.fixture
def tracker(monkeypatch):
    """Puts a fake module under a name; returns the list of its calls."""

    def install(name: str, fail: str = "") -> list[tuple]:
        calls: list[tuple] = []
        module = ModuleType(name)

        def note(function):
            def called(*args, **options):
                calls.append((function, *args, options) if options else (function, *args))
                if function == fail:
                    raise ConnectionError("no network")
                return Run(calls)

            return called

        for function in ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics"):
            setattr(module, function, note(function))
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return install


@pytest.fixture
def bench(cli, monkeypatch):
    monkeypatch.setattr("harness.cli.bench.report", lambda *_: None)
    return lambda *arguments, code=0: cli(*BENCH, "--methods", "toynoise", *arguments, code=code)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_a_cell(bench, tracker, name):
    calls = tracker(name)
    bench("--sink", name)
    assert [call[0] for call in calls] == ["init", "log", "finish"] * 2
    options = calls[3][1]
    assert (options["project"], options["name"]) == ("dfqbench-toy", "toy tiny toynoise W4A8 full seed 0")
    assert options["config"]["bits"] == "W4A8"
    assert options["config"]["torch"]
    (record,) = [r for r in Store(bench_folder()).records() if not r.cell.is_float]
    assert calls[4][1]["top1"] == record.metrics["top1"]
    assert calls[4][1]["mean_weight_bits"] == 4.0
    calls.clear()
    said = "No cell was left to run, so that nothing new went to the tracker."
    assert said in bench("--sink", name).output  # nothing is measured again, nothing is sent again
    assert calls == []
    assert said not in bench().output


def bench_folder():
    from pathlib import Path

    return Path("results/runs/toy")


def test_mlflow(bench, tracker):
    calls = tracker("mlflow")
    bench("--sink", "mlflow")
    assert calls[0] == ("set_experiment", "dfqbench-toy")
    assert [call[0] for call in calls[1:]] == ["start_run", "log_params", "log_metrics", "end"] * 2
    assert calls[2][1]["method"] == "float"
    assert "top1" in calls[3][1]


@pytest.mark.parametrize(("name", "fail"), [("wandb", "init"), ("wandb", "log"), ("mlflow", "set_experiment")])
def test_a_tracker_that_fails_costs_no_result(bench, tracker, name, fail):
    calls = tracker(name, fail)
    output = bench("--sink", name).output
    assert output.count("The tracker failed and gets nothing more (ConnectionError: no network).") == 1
    assert len(Store(bench_folder()).records()) == 2
    assert [call[0] for call in calls].count(fail) == 1


@pytest.mark.parametrize("name", SINKS)
def test_a_missing_package_is_one_sentence(bench, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    message = bench("--sink", name, code=2).stderr
    assert f"{sys.executable} -m pip install {name}" in message
    assert not bench_folder().exists()


def test_an_unknown_sink(bench):
    assert "did you mean 'mlflow'?" in bench("--sink", "mlfow", code=2).stderr


def test_a_tracker_hears_nothing_of_jobs_that_go_on_alone(cli):
    arguments = [word for word in BENCH if word != "--in-process"]
    refused = cli(*arguments, "--executor", "slurm", "--detach", "--sink", "wandb", code=2).stderr
    assert "--sink and --detach contradict each other, since no result comes back; leave one out" in refused
    assert not bench_folder().exists()


def test_failed_cells_are_not_sent(cli, monkeypatch, tracker):
    monkeypatch.setattr("harness.cli.bench.report", lambda *_: None)
    calls = tracker("wandb")
    cli(*BENCH, "--methods", "toyraise", "--sink", "wandb", code=3)
    assert [call[1]["name"] for call in calls if call[0] == "init"] == ["toy tiny float"]


def test_without_a_sink_nothing_happens():
    reporter = Reporter(None, pytest.fail)
    reporter.start({"suite": "toy"})
    reporter.finish()
    assert open_sink.__doc__
