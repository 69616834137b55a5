"""Cells in a folder from which hosts take them: each to one host, and none is lost with a host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from harness.io.files import this_machine
from harness.run.executors.slurm.queue import Beat, Ended, Entry, Header, Queue, host_name, queues

LONG_AGO = 10_000  # seconds


@pytest.fixture
def queue(tmp_path, toy_cell) -> Queue:
    entries = [Entry(cell=toy_cell(seed=seed), code="c", versions={}, expected=2.0) for seed in range(3)]
    return Queue.make(tmp_path / "queue" / "one", Header(name="one", cluster="local"), entries, {})


def beat(host: str, **changes) -> Beat:
    """A host of another machine."""
    return Beat(host=host, node="n", job="7", machine="another", pid=1, **changes)


def silent(queue: Queue, host: str) -> None:
    """As if a host had not beaten for long."""
    path = queue.folder / "hosts" / f"{host}.json"
    os.utime(path, (path.stat().st_mtime - LONG_AGO,) * 2)


def test_a_cell_goes_to_one_host_and_ends_there(queue):
    keys = queue.waiting()
    assert set(keys) == set(queue.entries)
    claim = queue.claim(keys[0], "a")
    assert claim is not None
    assert queue.claim(keys[0], "b") is None
    assert queue.running() == {keys[0]: "a"}
    assert queue.holds(claim)
    queue.end(claim, "ok", Ended(seconds=1.5, node="n"))
    assert queue.running() == {}
    assert queue.ended() == {keys[0]: "ok"}
    assert queue.result(keys[0], "ok").seconds == 1.5
    assert queue.waiting() == keys[1:]


def test_a_rename_that_was_done_twice_counts(queue):
    key = queue.waiting()[0]
    (queue.folder / "waiting" / key).rename(queue.folder / "running" / f"{key}@a")
    assert queue.claim(key, "a") is not None
    assert queue.claim(key, "b") is None


def test_losses_stay_with_a_cell_that_is_given_back(queue):
    key = queue.waiting()[0]
    queue.give_back(queue.claim(key, "a"))
    assert queue.losses() == {}
    queue.give_back(queue.claim(key, "a"), "job 1 on node n")
    assert queue.losses() == {key: ("job 1 on node n",)}
    queue.give_back(queue.claim(key, "b"), "job 2 on node n")
    assert queue.claim(key, "c").losses == ("job 1 on node n", "job 2 on node n")


def test_a_host_that_lost_its_cell_does_not_give_it_back(queue):
    key = queue.waiting()[0]
    first = queue.claim(key, "a")
    second = queue.take_over(key, "a", "b")
    assert not queue.holds(first)
    queue.give_back(first)
    assert queue.running() == {key: "b"}
    assert queue.holds(second)


def test_hosts_are_lost_that_are_silent_have_left_or_never_were(queue):
    keys = queue.waiting()
    for key, host in zip(keys, ("alive", "silent", "left"), strict=True):
        queue.beat(beat(host, left="stopped" if host == "left" else ""))
        queue.claim(key, host)
    assert queue.lost(60.0) == {keys[2]: "left"}
    silent(queue, "silent")
    assert queue.lost(60.0) == {keys[1]: "silent", keys[2]: "left"}
    (queue.folder / "hosts" / "alive.json").unlink()
    assert set(queue.lost(60.0)) == set(keys)


def test_a_process_of_this_machine_is_seen_to_be_dead_at_once(queue):
    key = queue.waiting()[0]
    own = {"node": socket.gethostname(), "job": "1", "machine": this_machine()}
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    queue.beat(Beat(host="ended", pid=ended.pid, **own))
    queue.beat(Beat(host="here", pid=os.getpid(), **own))
    queue.claim(key, "here")
    assert queue.lost(60.0) == {}
    queue.take_over(key, "here", "ended")
    assert queue.lost(60.0) == {key: "ended"}


def test_the_first_machine_is_the_one_that_all_agree_on(queue):
    assert queue.agree_on_machine({"processor": "x"}) == {"processor": "x"}
    assert queue.agree_on_machine({"processor": "y"}) == {"processor": "x"}


def test_half_made_queues_and_damaged_files_are_no_queues(queue, tmp_path):
    results = tmp_path
    (results / "queue" / "half" / "waiting").mkdir(parents=True)
    (results / "queue" / "other").mkdir()
    (results / "queue" / "other" / "queue.json").write_text("{}")
    assert [found.folder for found in queues(results)] == [queue.folder]
    (queue.folder / "hosts" / "x.json").write_text("{")
    assert queue.beats() == []


def test_names_of_hosts_fit_into_names_of_files():
    assert "@" not in host_name("12_3@x/y")
    assert "/" not in host_name("12_3@x/y")
