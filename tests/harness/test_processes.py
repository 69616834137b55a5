"""Processes that measure cells are new ones, whatever their server has seen."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from processes import wait_until

from harness.run.executors import processes
from harness.run.executors.processes import FORKS, end, new_process
from harness.run.executors.worker import WorkerProcess

needs_server = pytest.mark.skipif(not FORKS, reason="processes are not forks of a server here")


def _write(path: Path) -> None:
    path.write_text(f"{os.environ.get('TOY_SAID', '')} {os.environ.get('TOY_OWN', '')} {Path.cwd()} {os.getppid()}")


def _leave_behind(path: Path) -> None:
    import torch

    torch.left_behind = True
    path.write_text("done")


def _look(path: Path) -> None:
    import torch

    path.write_text(str(hasattr(torch, "left_behind")))


def _stay(path: Path) -> None:
    path.write_text("there")
    time.sleep(600)


def said(target, path, **own):
    process = new_process(target, (path,), own)
    process.start()
    process.join()
    assert process.exitcode == 0
    return path.read_text()


def test_each_has_the_environment_and_the_folder_of_now(tmp_path, monkeypatch):
    said(_write, tmp_path / "first")  # the server runs from here on
    monkeypatch.setenv("TOY_SAID", "now")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert said(_write, tmp_path / "told", TOY_OWN="own").split()[:3] == ["now", "own", str(tmp_path / "folder")]
    monkeypatch.delenv("TOY_SAID")
    assert said(_write, tmp_path / "told").split()[0] == str(tmp_path / "folder")


def test_what_one_leaves_behind_the_next_does_not_find(tmp_path):
    said(_leave_behind, tmp_path / "told")
    assert said(_look, tmp_path / "told") == "False"


@needs_server
def test_the_server_has_torch_and_none_of_our_modules(tmp_path):
    server = int(said(_write, tmp_path / "told").split()[-1])
    assert server != os.getpid()
    mapped = Path(f"/proc/{server}/maps").read_text()
    assert "libtorch" in mapped
    assert not any(name.startswith(("harness", "methods", "tasks")) for name in processes._PRELOADED)


@needs_server
def test_a_file_named_like_a_package_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.forkserver, "ensure_running", lambda: seen.append(os.environ.get("PYTHONSAFEPATH")))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    seen: list[str | None] = []
    new_process(_write, (tmp_path,), {})
    assert seen == ["1"]  # the interpreter that the server runs in leaves out the working folder
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    new_process(_write, (tmp_path,), {})
    assert os.environ["PYTHONSAFEPATH"] == ""


@needs_server
def test_a_dead_server_is_started_again_and_what_it_left_is_killed(tmp_path, settings, toy_cell):
    server = int(said(_write, tmp_path / "told").split()[-1])
    orphan = new_process(_stay, (tmp_path / "there",), {})
    orphan.start()
    wait_until((tmp_path / "there").exists, 60.0)
    worker = WorkerProcess(settings)
    cell = toy_cell()
    worker.begin(cell)
    os.kill(server, signal.SIGKILL)
    while (measured := worker.step(lambda *_: None)) is None:
        time.sleep(0.05)
    assert measured.record.failure is not None
    assert measured.record.failure.type == "WorkerDied"
    end(orphan)
    wait_until(
        lambda: not Path(f"/proc/{orphan.pid}").exists() or "Z" in Path(f"/proc/{orphan.pid}/stat").read_text(), 60.0
    )
    assert worker.measure(cell, lambda *_: None).record.status == "ok"
    worker.close()
