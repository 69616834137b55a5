"""A host drains a queue: what it measures, when it stops, and what becomes of cells that hosts were lost with."""

from __future__ import annotations

import os
import re

import pytest

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.results.record import Failure
from harness.results.store import Store
from harness.run.executors.slurm.host import NOTHING_WAITS, TIME_IS_UP, Drain, recover
from harness.run.executors.slurm.queue import Beat, Entry, Header, Queue
from harness.run.runner import Measured, failed_record

SECONDS = 60.0


class Worker:
    """Measures in this process; or hangs, or dies."""

    due = 0.0
    handles = ()

    def __init__(self, runner, settings):
        self.runner, self.settings = runner, settings
        self.cells = []
        self.hangs = self.dies = False

    def start(self):
        return {"device": "cpu", "processor": "Slide rule", "instructions": "none"}

    def begin(self, cell):
        self.cells.append(cell)

    def step(self, progress):
        progress("calibrate", 0.5)
        if self.dies:
            failure = Failure(type="WorkerDied", message="worker died with signal 15 (SIGTERM)")
            return Measured(failed_record(self.settings, self.cells[-1], failure, "2026-01-01T00:00:00+00:00", 1.0))
        return None if self.hangs else self.runner.measure(self.cells[-1], progress)

    def close(self):
        pass


class Scene:
    """A results folder with a queue in it, and hosts that drain it."""

    def __init__(self, folder, settings, store, runner):
        self.folder, self.settings, self.store = folder, settings, store
        self.worker = Worker(runner, settings)

    def queue(self, *cells, losses=None, expected=None, **changes) -> Queue:
        entries = []
        for cell in cells:
            code = code_for(self.settings.catalog, cell)
            fields = {"code": code.fingerprint, "versions": dict(code.versions)}
            entries.append(Entry(cell=cell, expected=(expected or {}).get(cell.key), **(fields | changes)))
        return Queue.make(self.folder, Header(name="q", cluster="local"), entries, losses or {})

    def host(self, queue, *, left=lambda: SECONDS, stopped=lambda: False) -> Drain:
        return Drain(queue, self.store, self.settings, self.worker, job="7_0", time_left=left, stopped=stopped)

    def keep(self, cell):
        made = self.worker.runner.measure(cell, lambda *_: None)
        self.store.save(made.record, made.outcomes)


@pytest.fixture
def scene(tmp_path, settings, store, runner) -> Scene:
    return Scene(tmp_path / "queue", settings, store, runner)


@pytest.fixture
def cells(toy_cell):
    return [toy_cell("float"), *(toy_cell(seed=seed) for seed in range(3))]


def lose(queue: Queue, key: str) -> None:
    """A host takes the cell and is never heard of again."""
    queue.beat(Beat(host="gone", node="far", job="3_1", machine="", pid=1, key=key, seconds=5.0, left="killed"))
    assert queue.claim(key, "gone") is not None


def test_all_cells_are_measured_and_kept(scene, cells):
    queue = scene.queue(*cells)
    assert scene.host(queue).run() == NOTHING_WAITS
    assert {record.key for record in scene.store.records()} == {cell.key for cell in cells}
    assert all(scene.store.has_result(cell.key) for cell in cells)
    assert set(queue.ended().values()) == {"ok"}
    assert queue.waiting() == []
    assert queue.running() == {}
    (beat,) = queue.beats()
    assert (beat.measured, beat.left) == (4, NOTHING_WAITS)


def test_a_host_stays_with_its_model_and_begins_the_longest(scene, toy_cell):
    long, short = toy_cell(seed=0, bits="W8A8"), toy_cell(seed=0)
    other = toy_cell(seed=0, model="tiny2", weights="weights of tiny2")
    queue = scene.queue(other, short, long, expected={long.key: 9.0, short.key: 3.0, other.key: 4.0})
    scene.host(queue).run()
    assert [cell.key for cell in scene.worker.cells] == [long.key, short.key, other.key]


def test_a_host_claims_only_what_fits_into_its_time(scene, toy_cell):
    long, middle, short = (toy_cell(bits=bits) for bits in ("W8A8", "W6A6", "W4A4"))
    expected = {long.key: 40.0, middle.key: 20.0, short.key: 10.0}
    queue = scene.queue(long, middle, short, expected=expected)
    host = scene.host(queue, left=lambda: 40.0 if not scene.worker.cells else 25.0 / len(scene.worker.cells))
    host.expected = lambda cell: expected[cell.key]
    assert host.run() == TIME_IS_UP
    # All that it has is 40 s, so that it tries the middle one; after that the short one alone fits with a margin.
    assert scene.worker.cells == [middle, short]
    assert queue.waiting() == [long.key]


def test_a_host_that_is_stopped_gives_its_cell_back(scene, cells):
    queue = scene.queue(cells[0])
    scene.worker.hangs = True
    assert scene.host(queue, stopped=lambda: bool(scene.worker.cells)).run() == "stopped"
    assert queue.waiting() == [cells[0].key]
    assert queue.losses() == {}
    assert scene.store.records() == []


def test_the_end_of_its_time_is_a_loss(scene, cells):
    queue = scene.queue(cells[0])
    scene.worker.hangs = True
    scene.host(queue, left=lambda: 0.0 if scene.worker.cells else 9.0, stopped=lambda: bool(scene.worker.cells)).run()
    (loss,) = queue.losses()[cells[0].key]
    assert loss.startswith("job 7_0 on node ")
    assert "no more time" in loss


def test_a_worker_that_dies_because_its_job_is_stopped_is_no_failure(scene, cells):
    queue = scene.queue(cells[0])
    scene.worker.dies = True
    scene.host(queue, stopped=lambda: bool(scene.worker.cells)).run()
    assert queue.waiting() == [cells[0].key]
    assert scene.store.records() == []


def test_a_worker_that_dies_is_a_failure_which_replaces_no_result(scene, cells):
    scene.keep(cells[0])
    queue = scene.queue(*cells[:2], again=True)
    scene.worker.dies = True
    scene.host(queue).run()
    assert queue.ended() == {cell.key: "failed" for cell in cells[:2]}
    assert queue.result(cells[0].key, "failed").record.failure.type == "WorkerDied"
    assert scene.store.record(cells[0].key).status == "ok"
    assert scene.store.record(cells[1].key).status == "failed"


def test_a_cell_is_measured_again_once_after_a_loss_and_says_so(scene, cells):
    queue = scene.queue(cells[0])
    lose(queue, cells[0].key)
    scene.host(queue).run()
    record = scene.store.record(cells[0].key)
    assert record.status == "ok"
    (notice,) = [notice for notice in record.warnings if notice.category == "HostLost"]
    assert notice.message == "measured again after its host was lost: job 3_1 on node far"


def test_a_second_loss_is_a_failure(scene, cells):
    queue = scene.queue(cells[0], losses={cells[0].key: ("job 1 on node near",)})
    lose(queue, cells[0].key)
    recover(queue, scene.store, scene.settings, "me", 60.0)
    record = scene.store.record(cells[0].key)
    said = "HostLost: its host was lost twice: job 1 on node near; then job 3_1 on node far"
    assert f"{record.failure.type}: {record.failure.message}" == said
    assert record.seconds == 5.0
    assert queue.ended() == {cells[0].key: "failed"}


@pytest.mark.parametrize("again", [False, True])
def test_what_was_kept_just_before_a_loss_is_not_measured_again(scene, cells, again):
    scene.keep(cells[0])
    queue = scene.queue(cells[0], again=again)
    lose(queue, cells[0].key)
    scene.host(queue).run()
    assert queue.ended() == {cells[0].key: "ok"}
    assert len(scene.worker.cells) == again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": "0" * 64}, "it has other code than the one that submitted .fingerprint"),
        ({"versions": {"python": "0.1"}}, "it has other packages than the one that submitted ."),
        (
            {"versions": {"nowhere": "1"}},
            "it has other packages than the one that submitted .nowhere is not installed, here 1",
        ),
    ],
)
def test_other_code_is_refused_and_the_cell_waits(scene, cells, changes, said):
    queue = scene.queue(cells[0], **changes)
    with pytest.raises(UsageError, match=said):
        scene.host(queue).run()
    assert queue.waiting() == [cells[0].key]
    assert scene.store.records() == []
    (beat,) = queue.beats()
    assert beat.refused
    assert re.search(said, beat.left)


def test_another_sort_of_machine_is_refused(scene, cells):
    queue = scene.queue(cells[0])
    queue.agree_on_machine({"device": "cpu", "processor": "Abacus", "instructions": "beads"})
    with pytest.raises(UsageError, match="computes on Slide rule with none, the first host on Abacus with beads"):
        scene.host(queue).run()
    assert queue.waiting() == [cells[0].key]
    assert scene.store.records() == []


def test_a_full_disk_stops_the_host_and_the_cell_waits(scene, cells, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    queue = scene.queue(cells[0])
    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(UsageError, match="No space left on device"):
        scene.host(queue).run()
    assert queue.waiting() == [cells[0].key]


def test_a_host_that_was_taken_for_lost_keeps_nothing(scene, cells):
    queue = scene.queue(cells[0])
    host = scene.host(queue)

    def others_take_it(progress):
        key, name = next(iter(queue.running().items()))
        queue.take_over(key, name, f"other.{os.getpid()}")
        return scene.worker.runner.measure(scene.worker.cells[-1], progress)

    scene.worker.step = others_take_it
    host.run()
    assert scene.store.records() == []
    assert list(queue.running()) == [cells[0].key]
