"""Images that several processes want at the same time are made once, and are those of a single process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import wait_until

from harness.identity.cell import Cell
from harness.identity.code import Code
from harness.io.claims import Claim, Owner, Pace
from harness.run import image_cache
from harness.run.clock import Clock, Waiting
from harness.run.context import Context
from harness.run.executors.processes import new_process
from harness.run.executors.worker import WorkerProcess
from harness.run.image_cache import ImageCache, prepare_cache

IDENTITY = {"source": "x"}


def context(cell: Cell, cache: Path, report=lambda *_: None, **given) -> Context:
    fields = {"code": Code("c", ()), "code_of": lambda info: Code("d", ()), "device": torch.device("cpu"), "threads": 1}
    return Context(cell, cache=cache, report=report, **(fields | given))


@pytest.fixture
def ctx(settings, toy_cell):
    return lambda **given: context(toy_cell(), settings.cache, **given)


def claim_of(cache: Path, ctx: Context) -> Path:
    """Where the claim on the images is; finds it by making them."""
    seen = []
    ctx.cached_images(IDENTITY, lambda: seen.extend(cache.glob("*.claim")) or torch.zeros(1, 1, 4, 4))
    (path,) = seen
    path.with_suffix(".safetensors").unlink()
    return path


@pytest.fixture
def quick(monkeypatch):
    """Claims that nobody touches are soon taken over."""
    monkeypatch.setattr(image_cache, "Pace", lambda: Pace(stale=0.3, look=0.05, settle=0.0))


# --- in one process -------------------------------------------------------------------------------------------------


def test_nothing_is_left_after_images_were_made_or_could_not_be(settings, ctx):
    def fails():
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        ctx().cached_images(IDENTITY, fails)
    assert not list(settings.cache.iterdir())
    ctx().cached_images(IDENTITY, lambda: torch.zeros(1, 1, 4, 4))
    assert [path.suffix for path in settings.cache.iterdir()] == [".safetensors"]


def test_a_hit_writes_nothing(settings, ctx, monkeypatch):
    ctx().cached_images(IDENTITY, lambda: torch.zeros(1, 1, 4, 4))
    monkeypatch.setattr(image_cache, "Claim", lambda *_: SimpleNamespace(give_up=lambda: None))
    ctx().cached_images(IDENTITY, lambda: pytest.fail("they are there"))


def test_who_waits_says_so_and_its_time_is_no_stage_s(settings, ctx, quick):
    path = claim_of(settings.cache, ctx())
    path.write_text(json.dumps(Owner("there", "another machine", 123, "t")._asdict()))
    told, clock = [], Clock()
    waiting = ctx(report=lambda *what: told.append(what), clock=clock)
    with waiting.stage("other"):
        waiting.progress("begins", 0.25)
        waiting.cached_images(IDENTITY, lambda: torch.zeros(1, 1, 4, 4))
    said = [(text, fraction) for text, fraction in told if isinstance(text, Waiting)]
    assert set(said) == {("waits for images that process 123 on there makes", 0.25)}
    assert clock.waited >= 0.3
    assert said[-1][0].seconds >= clock.waited - 0.2
    assert set(waiting.stages) == {"other", "synthesize"}
    assert sum(stage.seconds for stage in waiting.stages.values()) <= clock.seconds + 0.01
    assert not list(settings.cache.glob("*.claim"))


def test_waiting_is_said_across_processes():
    told = pickle.loads(pickle.dumps(Waiting("waits", 2.5)))
    assert (told, told.seconds) == ("waits", 2.5)
    assert isinstance(told, Waiting)


@pytest.mark.parametrize("place", [Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo])
def test_where_claims_do_not_work_images_are_made_with_a_warning(settings, ctx, place):
    path = claim_of(settings.cache, ctx())
    place(path)
    with pytest.warns(UserWarning, match=f"{path.name} is not a regular file; remove it.*made several times") as said:
        ctx().cached_images(IDENTITY, lambda: torch.ones(1, 1, 4, 4))
    assert len(said) == 1
    ctx().cached_images(IDENTITY, lambda: pytest.fail("they are there, and nobody waits"))


def test_images_that_are_not_kept_are_waited_for_once(settings, ctx, quick, monkeypatch):
    """The others then make them side by side: who cannot keep images must not make all wait for all."""
    path = claim_of(settings.cache, ctx())
    path.write_text(json.dumps(Owner("there", "another machine", 123, "t")._asdict()))
    third = json.dumps(Owner("third", "another machine", 5, "u")._asdict())

    def report(text, fraction):
        path.write_text(third)

    assert ctx(report=report).cached_images(IDENTITY, lambda: torch.ones(1, 1, 4, 4)).sum() == 16
    assert path.read_text() == third


def test_leftovers_of_a_killed_process_are_swept(settings):
    path = settings.cache / "x.claim"
    path.write_text(json.dumps(Owner("there", "another machine", 123, "t")._asdict()))
    prepare_cache(settings.cache, "--cache")
    assert path.exists()
    os.utime(path, (0, 0))
    prepare_cache(settings.cache, "--cache")
    assert not list(settings.cache.iterdir())


def test_seconds_of_a_record_do_without_waiting(settings, toy_cell, runner, monkeypatch):
    def waits(self, key, wait):
        wait(SimpleNamespace(wait=lambda tell: time.sleep(0.5)))
        return turn(self, key, wait)

    turn = ImageCache.turn
    monkeypatch.setattr(ImageCache, "turn", waits)
    for method, status in (("toynoise", "ok"), ("toynoise+toyround", "ok")):
        began = time.perf_counter()
        record = runner.measure(toy_cell(method), lambda *_: None).record
        assert record.status == status
        assert record.seconds <= time.perf_counter() - began - 0.5
        assert sum(stage.seconds for stage in record.stages.values() if not stage.cached) <= record.seconds


# --- in several processes -------------------------------------------------------------------------------------------


def _wants(cell: Cell, cache: Path, folder: Path, hangs: bool) -> None:
    """Wants images, and writes down what it got and what it drew after; who made them is in `log`."""

    def report(text, fraction):
        if isinstance(text, Waiting):
            (folder / f"waits.{os.getpid()}").write_text(text)

    def make() -> torch.Tensor:
        with (folder / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(600 if hangs else 0.5)
        ctx.count(images=3)
        ctx.diagnostics("loss", {"curve": torch.rand(3)})
        ctx.snapshot(1, torch.rand(3, 1, 4, 4))
        return torch.randn(3, 1, 4, 4)

    ctx = context(cell, cache, report)
    images = ctx.cached_images(IDENTITY, make)
    what = (images.numpy().tobytes(), torch.rand(2).tolist(), dict(ctx.counters), ctx.kept_diagnostics, ctx._snapshots)
    (folder / f"got.{os.getpid()}").write_bytes(pickle.dumps((*what[:-1], what[-1][1].tolist())))


def _started(number: int, *arguments) -> list:
    processes = [new_process(_wants, arguments, {}) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.slow
@pytest.mark.usual(number=2)
@pytest.mark.usual(killed=True)
@pytest.mark.parametrize(("number", "killed"), [(2, False), (4, False), (4, True)])
def test_processes_share_images_bit_for_bit(settings, toy_cell, tmp_path, number, killed):
    cell, together, alone = toy_cell(), tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone, tmp_path / "other"):
        folder.mkdir()
    first = _started(1, cell, settings.cache, together, True) if killed else []
    if killed:
        wait_until((together / "log").exists, 300.0)
    others = _started(number - len(first), cell, settings.cache, together, False)
    if killed:
        wait_until(lambda: len(list(together.glob("waits.*"))) == len(others), 300.0)
        os.kill(first[0].pid, signal.SIGKILL)
        first[0].join()
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert len((together / "log").read_text().split()) == 1 + killed
    assert [path.suffix for path in settings.cache.iterdir()] == [".safetensors"]
    _wants(cell, tmp_path / "other", alone, False)
    (expected,) = [path.read_bytes() for path in alone.glob("got.*")]
    got = [path.read_bytes() for path in together.glob("got.*")]
    assert got == [expected] * len(others)
    for path in together.glob("waits.*"):
        assert path.read_text().startswith("waits for images that process ")


@pytest.mark.slow
def test_a_cell_that_waits_for_another_is_not_failed_by_its_timeout(settings, toy_cell):
    worker, cell, longest = WorkerProcess(settings, timeout=6.0), toy_cell(), [0.0]
    try:
        assert worker.measure(cell, lambda *_: None).record.status == "ok"
        (images,) = settings.cache.iterdir()
        images.unlink()
        ours = Claim(images.with_suffix(".claim"), Pace())
        assert ours.take()

        def progress(text, fraction):
            longest.append(getattr(text, "seconds", 0.0))
            if longest[-1] > 9.0:
                ours.give_up()

        record = worker.measure(cell, progress).record
    finally:
        worker.close()
    assert max(longest) > 9.0
    assert record.status == "ok", record.failure
    assert record.seconds < 6.0
