"""Sweeps on a real Ray cluster of two nodes on this machine, with workers, hosts, nodes and the driver killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import PLUGINS
from processes import processes, wait_until, workers
from toy_sweep import TOY

from harness.api.errors import UsageError
from harness.results.store import Store
from harness.run.executors.base import Resources
from harness.run.executors.ray_cluster import RayHosts, _check_gpus, _gpus, reason
from harness.run.executors.ray_connection import connect
from harness.run.executors.registry import open_executor
from harness.run.executors.remote import LOST
from harness.run.work import Work

ROOT = Path(__file__).parents[2]
SWEEP = (*TOY, "--bits", "W4A8")
SMALL = {"object_store_memory": 80 * 2**20}
MISSING = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(MISSING, reason="package ray is not installed: pip install 'dfqbench[ray]'")


class Running:
    """A cluster whose head computes nothing, with two nodes of one CPU each; cells of `toyhang` hang until `marker` is
    there, and make it first.
    """

    def __init__(self, folder):
        from ray.cluster_utils import Cluster

        self.marker = folder / "hangs"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(PLUGINS))))
            patch.setenv("TOY_HANG", str(self.marker))
            patch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 lets hosts wait for whatever else runs here
            patch.setenv("RAY_health_check_period_ms", "500")
            patch.setenv("RAY_health_check_timeout_ms", "1000")
            patch.setenv("RAY_health_check_failure_threshold", "3")
            head = {"num_cpus": 0, "include_dashboard": False, **SMALL}
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            self.add, self.nodes = partial(self.cluster.add_node, num_cpus=1, **SMALL), []
            self.environment = dict(os.environ)
            self.ready()

    @property
    def address(self):
        return self.cluster.address

    def ready(self):
        """Two nodes again, and nothing hangs any more."""
        self.marker.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PYTHONPATH", "TOY_HANG", "RAY_worker_niceness"):
                patch.setenv(name, self.environment[name])
            while len(self.nodes) < 2:
                self.nodes.append(self.add())

    def hosts(self):
        """Process numbers of all hosts of this cluster, and their nodes."""
        nodes = {node.all_processes["raylet"][0].process.pid: node for node in self.nodes}
        return {pid: nodes[parent] for pid, parent, what in processes() if parent in nodes and "ray::Host" in what}

    def workers(self):
        return workers(self.hosts())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("ray"))
    yield running
    running.cluster.shutdown()


@pytest.fixture
def running(made):
    made.ready()
    yield made
    wait_until(lambda: not made.hosts())


@pytest.fixture
def sweep(running, settings):
    """Measure cells on the cluster; `strike` is called whenever a cell hangs."""

    def run(cells, strike=lambda: None, wait=60.0, **resources):
        anywhere = replace(settings, device="auto")
        executor = open_executor("ray", anywhere, Resources(address=running.address, wait=wait, **resources))

        def watch(*_):
            if running.marker.exists():
                strike()

        try:
            return {each.record.cell.method: each.record for each in executor.map(Work(cells), watch)}
        finally:
            executor.close()

    return run


@needs_ray
@pytest.mark.slow
def test_the_numbers_are_those_of_a_worker(cli, running, monkeypatch):
    monkeypatch.setattr("harness.report.write_report", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # Ray would set another
    methods = ("--methods", "toynoise,toydie", "--models", "tiny")
    cli("bench", *SWEEP, *methods, "--executor", "ray", "--address", running.address, "--out", "there", code=3)
    cli("bench", *SWEEP, *methods, "--jobs", "1", "--threads", "1", "--out", "here", code=3)
    there, here = ({record.key: record for record in Store(Path(out)).records()} for out in ("there", "here"))
    assert len(here) == 3
    assert there.keys() == here.keys()
    for key, record in here.items():
        assert there[key].metrics == record.metrics
        assert there[key].sidecars == record.sidecars
        if record.status == "ok":
            assert there[key].provenance.model_dump() == record.provenance.model_dump()
        assert there[key].failure == record.failure  # of toydie, which kills its worker
        assert not there[key].warnings


@needs_ray
@pytest.mark.slow
@pytest.mark.usual(victim="node")
@pytest.mark.parametrize("victim", ["host", "node"])
def test_a_lost_host_costs_another_try_of_its_own_cell(running, sweep, toy_cell, capsys, victim):
    struck = []

    def strike():
        if struck:
            return
        ((pid, node),) = running.hosts().items()
        struck.append(pid)
        if victim == "host":
            os.kill(pid, signal.SIGKILL)
        else:
            running.nodes.remove(node)
            running.cluster.remove_node(node, allow_graceful=False)

    found = sweep([toy_cell("float"), toy_cell("toyhang"), toy_cell()], strike, jobs=1)
    assert len(struck) == 1
    assert {method: record.status for method, record in found.items()} == dict.fromkeys(found, "ok")
    assert len(found) == 3
    noted = {method: record.warnings for method, record in found.items() if record.warnings}
    assert list(noted) == ["toyhang"]
    assert noted["toyhang"][0].category == LOST
    assert "Lost " in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_a_cell_that_loses_two_hosts_has_failed(running, sweep, toy_cell):
    def strike():
        for pid in running.hosts():
            os.kill(pid, signal.SIGKILL)
        running.marker.unlink()

    found = sweep([toy_cell("toyhang"), toy_cell()], strike, jobs=1)
    assert found["toyhang"].failure.type == LOST
    assert found["toyhang"].failure.message.startswith("its host was lost twice, the last time ")
    assert found["toyhang"].failure.message.endswith("its process died or was killed")
    assert found[toy_cell().method].status == "ok"


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_and_a_timeout_fail_the_cell_and_keep_the_host(running, sweep, toy_cell):
    hosts = []

    def strike():
        if not hosts:
            hosts.extend(running.hosts())
            (pid,) = running.workers()
            os.kill(pid, signal.SIGKILL)

    found = sweep([toy_cell("toyhang"), toy_cell()], strike, jobs=1)
    assert found["toyhang"].failure.type == "WorkerDied"
    assert found[toy_cell().method].status == "ok"
    running.ready()
    found = sweep([toy_cell("toyhang")], timeout=1.0)
    assert found["toyhang"].failure.message == "took longer than 1 seconds"


@needs_ray
@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_the_same_command_goes_on(cli, running, tmp_path):
    methods = ("--methods", "toynoise,toyhang", "--models", "tiny")
    command = ("bench", *SWEEP, *methods, "--executor", "ray", "--jobs", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *command, "--address", running.address],
        cwd=tmp_path,
        env=running.environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - single-threaded child
    )
    try:
        wait_until(running.marker.exists, 120)
        assert running.workers()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors.count(b"\n")) == (130, 1)
    wait_until(lambda: not running.hosts() and not running.workers())
    assert not list((tmp_path / "results/cache").glob(".*"))
    kept = {path: path.read_bytes() for path in (tmp_path / "results/runs/toy").glob("*.json")}
    result = cli(*command, "--address", running.address)
    assert f"{3 - len(kept)} of 3 cells to run" in result.output
    assert all(path.read_bytes() == old for path, old in kept.items())


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus": 3}, "each needs 3 CPUs and 0 GPUs, and of 3 nodes none has that: at most 1 CPU and 0 GPUs"),
        ({"gpus": 0.5}, "each needs 1 CPU and 0.5 GPUs, and of 3 nodes none has that: at most 1 CPU and 0 GPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_said(sweep, toy_cell, asked, message):
    with pytest.raises(UsageError, match=f"no host has started within 2 seconds: {message}"):
        sweep([toy_cell()], wait=2.0, **asked)


@needs_ray
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9; start one with `ray start --head`"),
        ("somewhere", "--address somewhere is not of the form HOST:PORT or auto"),
        ("local", "run the command on a machine of the cluster"),
        ("ray://127.0.0.1:10001", "run the command on a machine of the cluster"),
    ],
)
def test_without_a_cluster_there_is_a_sentence_and_no_cluster_of_our_own(cli, address, message):
    result = cli("bench", *SWEEP, "--methods", "toynoise", "--executor", "ray", "--address", address, code=2)
    assert message in result.stderr


def test_without_the_package_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs package ray; install it: pip install 'dfqbench\[ray\]'"):
        connect("127.0.0.1:6379")


class Ray:
    """What `RayHosts` asks of Ray before it starts anything."""

    def __init__(self, *nodes):
        self.all = [
            {"Alive": True, "NodeID": str(n), "Resources": {"CPU": c, "GPU": g}} for n, (c, g) in enumerate(nodes)
        ]

    def remote(self, **_):
        return lambda cls: cls

    def nodes(self):
        return self.all


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 24), (4, 0, 6), (1, 1, 4), (1, 0.5, 8), (1, 0.3, 12), (4, 0.5, 4), (1, 2, 2), (1, 3, 0)],
)
def test_how_many_hosts_there_is_room_for(settings, cpus, gpus, room):
    hosts = RayHosts(Ray((8, 2), (8, 2), (8, 0)), settings, None, cpus, gpus)
    assert hosts.room(()) == room
    assert hosts.room(("0", "1", "2")) == 0


def test_gpus_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"--gpus 1\.5: above one, Ray gives whole GPUs only"):
        _check_gpus(1.5)


def test_a_host_has_a_gpu_where_there_are_any():
    none, some = Ray((8, 0)).nodes(), Ray((8, 0), (8, 4)).nodes()
    asked = [
        _gpus(*case) for case in (("auto", None, none), ("auto", None, some), ("cpu", None, some), ("auto", 0.5, none))
    ]
    assert asked == [0.0, 1.0, 0.0, 0.5]
    assert _gpus("cuda", None, none) == 1.0  # it may come


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "The actor died.\n\tpid: 3\nThe actor is dead because its node has died. Node Id: 12",
            "its node died or cannot be reached",
        ),
        ("Worker exit type: NODE_OUT_OF_MEMORY; its worker process has died", "its node ran out of memory"),
        (
            "its creation task\nTraceback\n  File x\nModuleNotFoundError: No module named 'harness'",
            "ModuleNotFoundError: No module named 'harness'",
        ),
        ("", "RuntimeError"),
    ],
)
def test_what_ray_says_at_length_is_said_in_short(text, short):
    assert reason(RuntimeError(text)) == short
