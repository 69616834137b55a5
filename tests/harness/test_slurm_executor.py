"""The executor `slurm`: what it submits and follows, what a second driver does, and what it says of what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from rich.console import Console
from toy_sweep import TWO

from harness.api.errors import UsageError
from harness.results.store import Store
from harness.run.executors.base import Detached, Resources
from harness.run.executors.slurm import executor as module
from harness.run.executors.slurm.executor import SlurmExecutor
from harness.run.executors.slurm.host import Drain
from harness.run.executors.slurm.queue import Beat, Header, Queue, queues
from harness.run.executors.slurm.scheduler import Job, jobs_of, scheduler, seconds_of, time_left
from harness.run.executors.slurm.show import sentence, state_of, watch
from harness.run.work import Work

OVER, RUNS, WAITS = Job("9_0", "COMPLETED"), Job("9_0", "RUNNING"), Job("9_0", "PENDING", "Resources")


class Cluster:
    """Stands for Slurm: `lives` says what each job that is submitted does, the last of them for all that follow."""

    def __init__(self):
        self.lives = [self.drains]
        self.submitted = []  # numbers of hosts
        self.jobs = [OVER]
        self.cancelled = []

    def submit(self, folder, host, number, name):
        self.submitted.append(number)
        self.lives[min(len(self.submitted), len(self.lives)) - 1](host)
        return tuple(f"{8 + len(self.submitted)}_{each}" for each in range(number))

    def drains(self, host, most=inf):
        self.drain(host, most).run()

    def drain(self, host, most) -> Drain:
        raise NotImplementedError


@pytest.fixture
def cluster(monkeypatch, runner):
    found = Cluster()

    class Worker:
        due, handles = 0.0, ()

        def start(self):
            return {"device": "cpu", "processor": "Slide rule"}

        def begin(self, cell):
            self.cell = cell

        def step(self, progress):
            return runner.measure(self.cell, progress)

        def close(self):
            pass

    def drain(host, most):
        made = None

        def left():
            return SECONDS if made is None or made.measured < most else -1.0

        made = Drain(
            *(Queue(host.queue), Store(host.results), host.settings, Worker()),
            job="9_0",
            time_left=left,
            stopped=lambda: False,
        )
        return made

    found.drain = drain
    monkeypatch.setattr(module, "scheduler", lambda *_: found)
    monkeypatch.setattr(module, "jobs_of", lambda _: found.jobs)
    monkeypatch.setattr(module, "cancel", lambda header: found.cancelled.append(header.name))
    for name in ("_POLL", "_ASK", "_SLOW_START"):
        monkeypatch.setattr(module, name, 0.0)
    return found


SECONDS = 1e6


@pytest.fixture
def cells(toy_cell):
    return [toy_cell("float"), *(toy_cell(seed=seed) for seed in range(3))]


@pytest.fixture
def open_one(settings, store, cluster):
    """An executor; its first argument is what the user asks for."""
    return lambda **asked: SlurmExecutor(replace(settings, results=store.folder), Resources(**asked))


def run(executor, cells, **work):
    return list(executor.map(Work(cells, **work), lambda *_: None))


def test_hosts_write_the_results_and_each_is_given_once(open_one, cells, cluster, store):
    found = run(open_one(jobs=2), cells)
    assert {measured.record.key for measured in found} == {cell.key for cell in cells}
    assert len(found) == 4
    assert all(measured.kept for measured in found)
    assert all(store.has_result(cell.key) for cell in cells)
    assert cluster.submitted == [2]


@pytest.mark.parametrize(
    ("jobs", "expected", "hosts"),
    [
        (None, None, 4),
        (9, None, 4),  # one for each cell at most
        (3, 200.0, 3),
        (3, 1.0, 1),  # not worth more
        (3, 25.0, 2),
    ],
)
def test_no_more_hosts_than_the_work_is_worth(open_one, cells, jobs, expected, hosts):
    run(executor := open_one(jobs=jobs), cells, expected=lambda _: expected)
    assert executor._scheduler.submitted == [hosts]


def test_a_second_driver_submits_nothing_that_a_living_job_has(open_one, cells, cluster, capsys):
    cluster.lives = [lambda _: None]
    with pytest.raises(Detached):
        run(open_one(detach=True), cells[:2])
    cluster.jobs = [RUNS]
    (queue,) = queues(open_one()._results)
    second = open_one().map(Work(cells), lambda *_: None)
    cluster.lives = [cluster.drains]
    host = module.Host(queue.folder, open_one()._results, open_one()._settings)
    cluster.lives[0] = lambda new: (cluster.drains(host), cluster.drains(new))
    assert {measured.record.key for measured in second} == {cell.key for cell in cells}
    new = [found for found in queues(open_one()._results) if found.folder != queue.folder]
    assert [len(found.entries) for found in new] == [2]
    assert "Slurm job 9 is at work on 2 of these cells" in capsys.readouterr().err


def test_a_queue_whose_jobs_are_over_is_taken_up_with_its_losses(open_one, cells, cluster, store):
    def is_killed(host):
        queue = Queue(host.queue)
        queue.beat(Beat(host="h", node="far", job="9_0", machine="", pid=1, left="killed"))
        queue.claim(cells[0].key, "h")

    cluster.lives = [is_killed, cluster.drains]
    with pytest.raises(Detached):
        run(open_one(detach=True), cells)
    (old,) = queues(store.folder)
    assert len(run(open_one(), cells)) == 4
    assert not old.folder.exists()
    (notice,) = [each for each in store.record(cells[0].key).warnings if each.category == "HostLost"]
    assert notice.message.endswith("was lost: job 9_0 on node far")


@pytest.mark.parametrize("jobs", [[RUNS], [OVER]])
def test_what_ends_while_a_driver_starts_is_not_measured_again(open_one, cells, cluster, store, jobs):
    cluster.lives = [does_nothing, cluster.drains]
    with pytest.raises(Detached):
        run(open_one(detach=True), cells)
    (queue,) = queues(store.folder)
    second = open_one()
    cluster.jobs = jobs
    cluster.drains(module.Host(queue.folder, store.folder, second._settings))
    assert {measured.record.key for measured in run(second, cells)} == {cell.key for cell in cells}
    assert len(cluster.submitted) == 1


def test_hosts_that_end_too_early_are_followed_by_others(open_one, cells, cluster):
    cluster.lives = [lambda host: cluster.drains(host, 1), lambda host: cluster.drains(host, 2), cluster.drains]
    assert len(run(open_one(), cells)) == 4
    assert cluster.submitted == [4, 3, 1]


def does_nothing(_):
    pass


def leaves_a_log(host):
    (host.queue / "jobs").mkdir(exist_ok=True)
    (host.queue / "jobs" / "9_0_log.err").write_text("Traceback\nModuleNotFoundError: No module named 'harness'\n\n")


@pytest.mark.parametrize(
    ("life", "jobs", "said"),
    [
        (does_nothing, [OVER], r"has ended with 4 cells not measured and no sign of a host; is .* on a disk that the"),
        (leaves_a_log, [OVER], r"not measured: ModuleNotFoundError: No module named 'harness' \(logs are in "),
        (does_nothing, [replace(OVER, state="CANCELLED by 0")], "since it was cancelled; the same command goes on"),
        (
            does_nothing,
            [replace(WAITS, reason="PartitionTimeLimit")],
            "would never start .Slurm says PartitionTimeLimit",
        ),
    ],
)
def test_jobs_that_measure_nothing_are_an_error(open_one, cells, life, jobs, said):
    cluster = open_one()._scheduler
    cluster.lives, cluster.jobs = [life], jobs
    with pytest.raises(UsageError, match=said):
        run(open_one(), cells)
    assert len(cluster.cancelled) == (jobs[0].state == "PENDING")


def test_what_a_host_refused_is_said(open_one, cells, cluster):
    def refuses(host):
        Queue(host.queue).agree_on_machine({"processor": "Abacus"})
        with pytest.raises(UsageError):
            cluster.drains(host)

    cluster.lives = [refuses]
    with pytest.raises(
        UsageError, match=r"4 cells not measured: node .*: it computes on Slide rule, the first host on Abacus"
    ):
        run(open_one(), cells)


def test_that_no_host_starts_is_said_once(open_one, cells, cluster, capsys, monkeypatch):
    held, looks = [], iter(range(100))
    cluster.lives, cluster.jobs = [held.append], [WAITS]

    def jobs_seen(_):
        if next(looks) == 5:
            cluster.drains(held[0])
        return cluster.jobs

    monkeypatch.setattr(module, "jobs_of", jobs_seen)
    assert len(run(open_one(), cells)) == 4
    assert capsys.readouterr().err.count("has started; Slurm says Resources") == 1


def test_an_interrupted_driver_ends_its_jobs(open_one, cells, cluster, capsys):
    cluster.lives, cluster.jobs = [lambda host: cluster.drains(host, 1)], [RUNS]
    executor = open_one()
    results = executor.map(Work(cells), lambda *_: None)
    next(results)
    executor.close()
    assert len(cluster.cancelled) == 1
    assert "Slurm job 9 is ended; what was measured is kept" in capsys.readouterr().err
    executor.close()
    assert len(cluster.cancelled) == 1


@pytest.mark.parametrize(("answer", "ended"), [("", 1), ("y", 1), ("n", 0), (None, 0)])
def test_at_a_terminal_the_user_is_asked(open_one, cells, answer, ended):
    executor = open_one()
    cluster = executor._scheduler
    cluster.lives, cluster.jobs = [lambda host: cluster.drains(host, 1)], [RUNS]
    next(executor.map(Work(cells), lambda *_: None))

    def asked(*_, **__):
        if answer is None:
            raise KeyboardInterrupt
        return answer

    executor._console = Console(stderr=True, force_terminal=True)
    executor._console.input = asked
    executor.close()
    assert len(cluster.cancelled) == ended


def script(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A PATH with commands that stand for Slurm's; called with texts of scripts."""
    folder = tmp_path / "bin"

    def make(**texts):
        for name in ("sbatch", "srun", "squeue", "scancel"):
            script(folder, name, texts.get(name, "exit 0"))
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make


def test_what_slurm_says_of_jobs_is_understood(commands):
    commands(squeue='echo "12_0|RUNNING|None"; echo "12_1|PENDING|BadConstraints"; echo "12_2|CANCELLED by 5|None"')
    first, second, third = jobs_of(Header(name="q", cluster="slurm"))
    assert (first.over, second.over, third.over) == (False, False, True)
    assert second.hopeless
    assert not first.hopeless
    commands(squeue="exit 1")
    assert jobs_of(Header(name="q", cluster="slurm")) is None


def test_local_jobs_are_processes():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    header = Header(name="q", cluster="local", jobs=(str(ended.pid),))
    ended.wait()
    assert jobs_of(header) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("1-12", 129600), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds


def test_the_time_left_is_what_slurm_says(commands):
    commands(squeue="echo 59:49")
    assert time_left("1") == 59 * 60 + 49
    commands(squeue="echo UNLIMITED")
    assert time_left("1") == inf
    commands(squeue="exit 1")
    assert time_left("1") == inf


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"time": "soon"}, "--slurm time=soon: write it as Slurm does"),
        ({"array": "0-9"}, "--slurm array=...: dfqbench says this itself"),
        ({"job-name": "x"}, "--slurm job-name=...: dfqbench says this itself"),
        ({"cpus-per-task": "8"}, "--slurm cpus-per-task=8: say it with --cpus, and leave it out here"),
        ({"gpus-per-node": "2"}, "--slurm gpus-per-node=2: say it with --gpus, and leave it out here"),
        ({"gpus": "2"}, "--slurm gpus=2: say it with --gpus, and leave it out here"),
        ({"cluster": "moon"}, "--slurm cluster=moon: it is slurm or local"),
        ({"cluster": "local", "partition": "x"}, "cluster=local knows only time"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(commands, asked, said):
    commands()
    with pytest.raises(UsageError, match=said):
        scheduler(asked)


def test_gpus_are_asked_for_once(commands):
    commands()
    with pytest.raises(UsageError, match="--gpus 1 and --slurm gres=gpu:h200:2 both ask for GPUs; leave one out"):
        scheduler({"gres": "gpu:h200:2"}, gpus=1.0)
    for asked in ({"gpus-per-node": "h200:2"}, {"tres-per-task": "gres/gpu:2"}, {"gpus-per-socket": "1"}):
        with pytest.raises(UsageError, match="both ask for GPUs; leave one out"):
            scheduler(asked, gpus=1.0)
        assert asked.items() <= scheduler(asked)._asked.items()  # a kind, or a place, that --gpus cannot say
    assert scheduler({"gres": "gpu:h200:2"})._asked["gres"] == "gpu:h200:2"
    assert scheduler({"gres": "license:1"}, gpus=1.0)._asked["gpus-per-node"] == "1"


def test_what_has_no_effect_on_the_local_cluster_is_refused():
    local = {"cluster": "local"}
    with pytest.raises(UsageError, match="--gpus 4: --slurm cluster=local reserves no GPUs; leave it out"):
        scheduler(local, gpus=4.0)
    with pytest.raises(UsageError, match="--cpus 4: --slurm cluster=local reserves no CPUs, and --threads 2 is all"):
        scheduler(local, cpus=4, threads=2)
    scheduler(local, cpus=4, threads=4)  # as when --cpus alone says the threads


def test_a_machine_without_slurm_and_shares_of_gpus_are_refused(commands, monkeypatch):
    commands()
    with pytest.raises(UsageError, match=r"Slurm gives whole GPUs; ask for shares with --slurm gres=shard:1"):
        scheduler({}, gpus=0.5)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch on this machine's PATH; run it on a login node"):
        scheduler({})


def test_submitit_that_is_missing_is_said(commands, tmp_path, monkeypatch):
    commands()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"needs submitit: pip install 'dfqbench\[slurm\]'"):
        scheduler({}).submit(tmp_path, print, 1, "q")


def test_what_sbatch_says_is_one_sentence(commands, tmp_path, capfd):
    pytest.importorskip("submitit")
    said = "sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed: Invalid"
    commands(sbatch=f"printf '{said}' >&2; exit 1")
    with pytest.raises(UsageError) as refused:
        scheduler({"partition": "x"}).submit(tmp_path, print, 2, "q")
    assert str(refused.value) == (
        "Slurm refuses the job (invalid partition specified: x; Batch job submission failed: Invalid); "
        "change what --slurm asks for"
    )
    assert capfd.readouterr().err == ""


def test_what_is_asked_of_sbatch(commands, tmp_path):
    pytest.importorskip("submitit")
    commands(sbatch=f'cp "$1" {tmp_path}/script; echo "Submitted batch job 12"')
    asked = {"partition": "gpu", "time": "02:00:00", "mem-per-cpu": "2G"}
    assert scheduler(asked, 4, 1.0).submit(tmp_path / "jobs", print, 2, "dfqbench-q") == ("12_0", "12_1")
    lines = (tmp_path / "script").read_text().splitlines()
    for option in ("array=0-1%2", "job-name=dfqbench-q", "partition=gpu", "time=02:00:00", "mem-per-cpu=2G"):
        assert f"#SBATCH --{option}" in lines
    for option in ("cpus-per-task=4", "gpus-per-node=1", "requeue", "open-mode=append"):
        assert f"#SBATCH --{option}" in lines
    assert any("srun" in line and "--cpus-per-task=4" in line for line in lines)


def test_hosts_have_a_cpu_for_each_thread(commands, tmp_path):
    pytest.importorskip("submitit")
    commands(sbatch=f'cp "$1" {tmp_path}/script; echo "Submitted batch job 12"')
    scheduler({}, threads=3).submit(tmp_path / "jobs", print, 1, "q")
    assert "#SBATCH --cpus-per-task=3" in (tmp_path / "script").read_text().splitlines()


def test_cells_that_run_are_shown_with_hosts_and_time(open_one, cells, cluster, store):
    cluster.lives = [does_nothing]
    with pytest.raises(Detached):
        run(open_one(detach=True, jobs=2), cells, expected=lambda _: 60.0)
    (queue,) = queues(store.folder)
    queue.beat(Beat(host="h", node="n1", job="9_0", machine="other", pid=1, key=cells[1].key, text="evaluate",
                    fraction=0.5, seconds=30.0))  # fmt: skip
    queue.beat(Beat(host="g", node="n2", job="9_1", machine="other", pid=1, left="killed"))
    queue.claim(cells[1].key, "h")
    queue.claim(cells[2].key, "g")
    state = state_of(queue)
    assert state.left == pytest.approx(3 * 60.0 + 30.0)
    said = "Slurm job 9: 3 waiting, 1 running, 0 done; 1 of 2 hosts at work, about 3 min 30 s left"
    assert sentence(state, [RUNS]) == said
    assert sentence(state, [OVER]).endswith(
        "its jobs are over: the command that submitted them goes on with what is left"
    )
    console = Console(width=120, record=True)
    watch(store.folder, console, once=True)
    shown = console.export_text()
    assert "tiny toynoise W4A8 full seed 0  job 9_0 on n1  evaluate 50%" in shown
    assert "waits for another host" in shown


def test_watch_needs_a_queue(cli):
    assert "no cells were submitted to results folder nowhere" in cli("watch", "nowhere", code=2).stderr


@pytest.mark.slow
def test_the_local_cluster_gives_the_same_results(cli, monkeypatch):
    """Real jobs, in processes of this machine."""
    pytest.importorskip("submitit")
    monkeypatch.setattr("harness.report.write_report", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    toy = (*TWO, "--models", "tiny", "--threads", "1")
    local = ("--executor", "slurm", "--slurm", "cluster=local,time=10", "--jobs", "1", "--out", "there")
    assert "goes on alone" in cli("bench", *toy, *local, "--detach").output
    cli("bench", *toy, *local)
    cli("bench", *toy, "--in-process", "--out", "here")
    here, there = Store(Path("here")), Store(Path("there"))
    records = {record.key: record for record in there.records()}
    assert len(records) == 3
    assert all(here.agrees(record, records[record.key], there) for record in here.records())
    assert "3 done; all cells have ended" in cli("watch", "there", "--once").output
