"""Claims: one of several processes makes a file, whatever becomes of the processes and of the claim."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from processes import wait_until

from harness.io import claims
from harness.io.claims import Claim, Owner, Pace, sweep
from harness.io.files import this_machine

PACE = Pace(beat=10.0, stale=45.0, look=0.05, settle=0.0)
ELSEWHERE = Owner("there", "another machine", 123, "t")


class Clock:
    """Stands for the module's `time`; sleeping passes the time, and may do more."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(claims, "time", Clock())
    return claims.time


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.claim"


def put(path: Path, owner: Owner) -> None:
    path.write_text(json.dumps(owner._asdict()))


def ended() -> int:
    """Number of a process that has ended."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def waits_for(claim: Claim) -> tuple[bool, list[str]]:
    told = []
    given_up = claim.wait(lambda owner, seconds: told.append(str(owner)))
    return given_up, list(dict.fromkeys(told))


# --- who has it -----------------------------------------------------------------------------------------------------


def test_one_has_it_until_it_gives_it_up(path):
    first, second = Claim(path, PACE), Claim(path, PACE)
    assert first.take()
    assert not second.take()
    first.give_up()
    assert not path.exists()
    assert second.take()
    second.give_up()
    assert not list(path.parent.iterdir())


def test_it_is_touched_for_as_long_as_it_is_held(path):
    claim = Claim(path, Pace(beat=0.01))
    assert claim.take()
    for _ in range(3):
        before = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == before:
            time.sleep(0.01)
    claim.give_up()


def test_what_is_not_touched_any_more_is_taken_over(path, clock):
    put(path, ELSEWHERE)
    claim = Claim(path, PACE)
    assert not claim.take()
    clock.now = 44.0
    assert not claim.take()
    os.utime(path)
    clock.now = 46.0
    assert not claim.take()
    clock.now = 90.0
    assert not claim.take()
    clock.now = 92.0
    assert claim.take()
    claim.give_up()
    assert not list(path.parent.iterdir())


def test_that_of_a_process_that_has_ended_is_taken_over_at_once(path, clock):
    mine = Owner("here", this_machine(), ended(), "t")
    assert mine.machine, "machines are told apart here"
    put(path, mine)
    claim = Claim(path, PACE)
    assert claim.take()
    assert clock.now == 0.0
    claim.give_up()
    put(path, mine._replace(machine="another machine"))  # where that number means another process
    assert not Claim(path, PACE).take()
    put(path, mine._replace(pid=os.getppid()))
    assert not Claim(path, PACE).take()


def test_of_two_that_take_over_at_the_same_moment_one_has_it(path, clock):
    put(path, ELSEWHERE)
    first, second = Claim(path, PACE), Claim(path, PACE)
    old = first._look()
    assert not first.take()
    assert not second.take()
    clock.now = 50.0
    second._look = iter([old, old, None]).__next__  # it has looked before the first one took over
    second._is_own = lambda: Claim._look(second).content == second._own
    outcome = []
    clock.meanwhile = lambda: outcome.append(second.take())
    outcome.append(first.take())
    assert outcome == [True, False]
    first.give_up()
    assert path.exists(), "it is the second one's"
    second.give_up()
    assert not list(path.parent.iterdir())


def test_who_lost_it_does_not_touch_or_remove_it(path, clock):
    claim = Claim(path, Pace(beat=0.01))
    assert claim.take()
    put(path, ELSEWHERE)
    os.utime(path, ns=(0, 0))
    for thread in threading.enumerate():
        if thread.name == "claim":
            thread.join()
    claim.give_up()
    assert path.stat().st_mtime_ns == 0


# --- waiting --------------------------------------------------------------------------------------------------------


def test_who_waits_tells_for_whom_until_it_is_given_up(path, clock):
    put(path, ELSEWHERE)
    clock.meanwhile = path.unlink
    assert waits_for(Claim(path, PACE)) == (True, ["process 123 on there"])


def test_the_seconds_told_last_until_they_are_told_next(path, clock):
    put(path, ELSEWHERE)
    told = [0.0]

    def tell(owner, seconds):
        assert clock.now <= told[-1]
        told.append(seconds)

    assert not Claim(path, Pace()).wait(tell)
    assert len(told) > 20
    assert clock.now <= told[-1] <= 48.0


def test_who_waits_goes_on_when_another_took_it_over(path, clock):
    put(path, ELSEWHERE)

    def taken_over():
        put(path, Owner("third", "m", 5, "u", after="t"))
        clock.meanwhile = path.unlink

    clock.meanwhile = taken_over
    assert waits_for(Claim(path, PACE)) == (True, ["process 123 on there", "process 5 on third"])


def test_who_waited_does_not_wait_for_a_third(path, clock):
    put(path, ELSEWHERE)
    clock.meanwhile = lambda: put(path, Owner("third", "m", 5, "u"))
    assert waits_for(Claim(path, PACE)) == (True, ["process 123 on there"])


def test_who_waits_stops_when_the_other_is_gone(path, clock):
    put(path, ELSEWHERE)
    claim = Claim(path, PACE)
    assert waits_for(claim) == (False, ["process 123 on there"])
    assert clock.now >= 45.0
    assert claim.take()
    assert json.loads(path.read_text())["after"] == "t"
    claim.give_up()


# --- what may stand in its place ------------------------------------------------------------------------------------

GARBAGE = {
    "empty": b"",
    "text": b"x",
    "zeros": bytes(100),
    "no UTF-8": b"\xff\xfe{}",
    "large": b"[" * 10**6,
    "deep": b"[" * 4000,
    "list": b'["a", "b", 1, "c", "d"]',
    "number": b"1",
    "other fields": b'{"host": "a", "pid": 1, "x": 2}',
    "pid as text": b'{"host": "a", "machine": "b", "pid": "1", "token": "c"}',
    "negative pid": b'{"host": "a", "machine": "b", "pid": -1, "token": "c"}',
    "pid of all": b'{"host": "a", "machine": "b", "pid": 0, "token": "c"}',
    "endless pid": b'{"host": "a", "machine": "b", "pid": ' + b"9" * 3000 + b', "token": "c"}',
    "truth as pid": b'{"host": "a", "machine": "b", "pid": true, "token": "c"}',
    "half": b'{"host": "a", "machine": "b", "pi',
    "token as list": b'{"host": "a", "machine": "b", "pid": 1, "token": []}',
    "half a surrogate pair": b'{"host": "\\ud800", "machine": "b", "pid": 1, "token": "\\ud800"}',
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_waited_for_and_then_taken_over(path, clock, content):
    path.write_bytes(content)
    claim = Claim(path, PACE)
    assert not claim.take()
    given_up, told = waits_for(claim)
    assert not given_up
    assert len(told) == 1
    assert claim.take()
    claim.give_up()
    assert not list(path.parent.iterdir())


def test_random_garbage_is_taken_over(path, clock):
    import random

    draw = random.Random(0)
    good = json.dumps(ELSEWHERE._asdict()).encode()
    for _ in range(200):
        content = bytearray(good)
        for _ in range(draw.randrange(1, 5)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
        claim = Claim(path, PACE)
        assert not claim.take()
        clock.now += 50.0
        assert claim.take()
        claim.give_up()
    assert not list(path.parent.iterdir())


def folder(path: Path) -> None:
    path.mkdir()
    (path / "kept").touch()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def link(path: Path) -> None:
    (path.parent / "kept").touch()
    path.symlink_to("kept")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", [folder, dangling, link, to_itself, os.mkfifo], ids=lambda place: place.__name__)
def test_what_is_no_regular_file_is_left_alone(path, place):
    place(path)
    before = sorted(path.parent.rglob("*"))
    claim = Claim(path, Pace(stale=0.0))
    for _ in range(2):
        with pytest.raises(OSError, match="is not a regular file; remove it"):
            claim.take()
    claim.give_up()
    assert sorted(path.parent.rglob("*")) == before


def test_a_folder_that_is_not_there(path):
    claim = Claim(path.parent / "gone" / path.name, PACE)
    with pytest.raises(FileNotFoundError):
        claim.take()
    claim.give_up()


def _takes_with_a_full_disk(path: Path, connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    claim = Claim(path, PACE)
    try:
        connection.send(claim.take())
    except OSError as error:
        connection.send(error.errno)


def test_a_disk_that_takes_no_more_leaves_nothing_behind(path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_takes_with_a_full_disk, args=(path, theirs))
    process.start()
    theirs.close()
    assert ours.recv() is not True
    process.join()
    assert not list(path.parent.iterdir())


# --- sweeping -------------------------------------------------------------------------------------------------------


def test_claims_of_ended_and_forgotten_processes_are_swept(tmp_path):
    here = Owner("here", this_machine(), os.getpid(), "t")
    put(tmp_path / "held.claim", here)
    put(tmp_path / "elsewhere.claim", ELSEWHERE)
    put(tmp_path / "ended.claim", here._replace(pid=ended()))
    put(tmp_path / "forgotten.claim", ELSEWHERE)
    os.utime(tmp_path / "forgotten.claim", (0, 0))
    (tmp_path / "old.safetensors").touch()
    os.utime(tmp_path / "old.safetensors", (0, 0))
    (tmp_path / "folder.claim").mkdir()
    sweep(tmp_path, ".claim")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"held.claim", "elsewhere.claim", "old.safetensors", "folder.claim"}


def test_a_folder_that_cannot_be_swept_does_no_harm(tmp_path):
    sweep(tmp_path / "gone", ".claim")


# --- real processes -------------------------------------------------------------------------------------------------


def _makes(folder: Path, pace: Pace, machine: str | None, hangs: bool) -> None:
    """Makes `made` in the folder if nobody else does; who made it, or began to, is in `log`."""
    if machine is not None:
        claims._machine = lambda: machine
    made = folder / "made"
    claim = Claim(folder / "x.claim", pace)
    try:
        while not made.exists() and not claim.take():
            claim.wait(lambda owner, seconds: (folder / f"waits.{os.getpid()}").touch())
        if not made.exists():
            with (folder / "log").open("a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(600 if hangs else 0.1)
            made.touch()
    finally:
        claim.give_up()


def _started(number: int, folder: Path, pace: Pace, machine: str | None, hangs: bool = False) -> list:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_makes, args=(folder, pace, machine, hangs)) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def _joined(processes: list) -> None:
    for process in processes:
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize("number", [2, 4])
def test_one_of_several_processes_makes_it(tmp_path, number):
    _joined(_started(number, tmp_path, Pace(look=0.1), None))
    assert len((tmp_path / "log").read_text().split()) == 1
    assert not list(tmp_path.glob("*.claim*")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize("machine", [None, ""], ids=["ended", "silent"])
def test_one_takes_over_from_a_process_that_was_killed(tmp_path, machine):
    """Known to have ended where processes of this machine are known, else since its claim is not touched any more."""
    pace = Pace(beat=0.2, stale=60.0 if machine is None else 3.0, look=0.1)
    (first,) = _started(1, tmp_path, pace, machine, hangs=True)
    wait_until((tmp_path / "log").exists, 300.0)
    others = _started(3, tmp_path, pace, machine)
    wait_until(lambda: len(list(tmp_path.glob("waits.*"))) == 3, 300.0)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    _joined(others)
    makers = (tmp_path / "log").read_text().split()
    assert makers[0] == str(first.pid)
    assert len(makers) == 2
    assert not list(tmp_path.glob("*.claim*")) + list(tmp_path.glob(".*"))
