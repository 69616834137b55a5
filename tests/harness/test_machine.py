"""What the machine has, and how it is divided."""

from __future__ import annotations

import os

import pytest

from harness.run import machine

GIB = 2**30


@pytest.fixture
def described(monkeypatch, tmp_path):
    """A machine with so many cores, so much memory and so many GPUs."""

    def describe(cores: int, memory: int = 64 * GIB, gpus: int = 0) -> None:
        monkeypatch.setattr(machine, "usable_cores", lambda: cores)
        monkeypatch.setattr(machine, "memory_bytes", lambda: memory)
        monkeypatch.setattr(machine, "gpus", lambda device: tuple(map(str, range(gpus * (device != "cpu")))))

    return describe


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_cores_respect_the_quota(monkeypatch, tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(
    ("has", "says", "jobs", "threads"),
    [
        ((2,), {}, 2, 1),
        ((1,), {}, 1, 1),
        ((8,), {"threads": 4}, 2, 4),
        ((8,), {"threads": 16}, 1, 16),
        ((8,), {"jobs": 3}, 3, 2),
        ((2,), {"jobs": 8}, 8, 1),
        ((16, 8 * GIB), {}, 4, 4),
        ((16, GIB), {}, 1, 16),
        ((32, 64 * GIB, 8), {}, 8, 4),
        ((32, 64 * GIB, 8), {"threads": 16}, 8, 16),
        ((32, 64 * GIB, 8), {"device": "cpu"}, 32, 1),
        ((4, 64 * GIB, 1), {"jobs": 2}, 2, 2),
    ],
)
def test_what_is_not_said_is_divided(described, has, says, jobs, threads):
    described(*has)
    found = machine.shares(**({"device": "auto"} | says))
    assert (found.jobs, found.threads) == (jobs, threads)


def test_the_division_is_said(described):
    described(2)
    assert machine.shares("cpu").text == "2 cells at a time, each with 1 thread (2 cores)."
    assert machine.shares("cpu", jobs=1).text == "One cell at a time with 2 threads (2 cores)."
    described(8, gpus=1)
    assert machine.shares("cuda").text == "One cell at a time with 8 threads (1 GPU)."


def test_the_quota_of_the_container_counts_for_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    whole = machine.memory_bytes()
    (tmp_path / "memory.max").write_text("max")
    assert machine.memory_bytes() == whole
    (tmp_path / "memory.max").write_text("1000000")
    assert machine.memory_bytes() == 1_000_000


@pytest.mark.parametrize(
    ("visible", "found"), [("2,3", ("2", "3")), ("", ()), ("-1", ()), ("GPU-8a", ("GPU-8a",)), (None, ("0", "1"))]
)
def test_gpus_are_those_that_the_user_left_visible(monkeypatch, tmp_path, visible, found):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus("auto") == found
    assert machine.gpus("cpu") == ()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine.gpus("auto") == ()
