"""Memory that tensors leave stays with the process while it measures; seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import torch
from harness.run.allocator import keep_freed_memory, return_freed_memory
from harness.run.memory import MemoryMeter


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**20)  # 4 MiB: 1,024 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_freed_memory()
faults()
pages = faults()
many = [torch.ones(2**20) for _ in range(16)]
full = MemoryMeter("cpu")
del many
kept = MemoryMeter("cpu")
return_freed_memory()
empty = MemoryMeter("cpu")
print(pages, round(full.peak_mib - kept.peak_mib), round(full.peak_mib - empty.peak_mib))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_memory_is_kept_between_tensors_and_given_back_when_asked():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    pages, kept, given = map(int, done.stdout.split())
    assert pages < 1024  # twenty tensors on new pages would take 20,480
    assert kept < 10  # MiB
    assert given > 50
