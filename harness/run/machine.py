"""What this machine has, and how it is divided among cells that run at the same time."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.results.provenance import this_processor

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
_DEVICES = Path("/dev")
_MEMORY_PER_JOB = 2 * 2**30  # bytes; a worker with the embedded models takes 0.6 GiB, one with a DeiT-S at most 2


@dataclass(frozen=True)
class Shares:
    """How many cells run at a time, with how many CPU threads each."""

    jobs: int
    threads: int
    text: str  # one sentence


def shares(device: str, jobs: int | None = None, threads: int | None = None) -> Shares:
    """The division that is fastest, but for what the user says.

    Cells scale better than threads: two cells with a thread each are done sooner than one after the other with two.
    Where there are GPUs, each runs one cell. The division depends on the machine and on nothing that changes between
    two runs, since numbers may depend on the threads.

    Args:
        device: auto, cpu or cuda.
        jobs: Cells at a time.
        threads: CPU threads of each.
    """
    cores = usable_cores()
    cards = gpus(device)
    if jobs is None:
        most = len(cards) or max(1, min(cores, memory_bytes() // _MEMORY_PER_JOB))
        jobs = most if threads is None or cards else max(1, min(most, cores // threads))
    threads = threads or max(1, cores // jobs)
    here = f"{len(cards)} GPU{'s' * (len(cards) > 1)}" if cards else f"{cores} core{'s' * (cores > 1)}"
    what = "One cell" if jobs == 1 else f"{jobs} cells"
    each = f" {'each ' * (jobs > 1)}with {threads} thread{'s' * (threads > 1)}"
    return Shares(jobs, threads, f"{what} at a time{',' * (jobs > 1)}{each} ({here}).")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cgroup v2) if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (int(number) for number in CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no such file, or `max`: no quota
        return cores
    return max(1, min(cores, quota // period)) if quota > 0 < period else cores


def memory_bytes() -> int:
    """Memory of the machine, or of its container (cgroup v2) if that is less; 2**40 where it cannot be found out."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**40
    try:
        return min(found, int(CPU_QUOTA.with_name("memory.max").read_text()))
    except (OSError, ValueError):
        return found


def computes(device: str) -> frozenset[str]:
    """Names of what would compute cells here, as records have them: of the GPUs, or of the processor."""
    cards = gpus(device)
    if not cards:
        return frozenset((this_processor(),))
    import torch

    return frozenset(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def gpus(device: str) -> tuple[str, ...]:
    """Names of the GPUs that cells may use, as CUDA_VISIBLE_DEVICES takes them; none with device `cpu`."""
    if device == "cpu":
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    else:
        names = sorted(path.name for path in _DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
        found = [str(number) for number in range(len(names))]
    if not found:
        return ()
    import torch  # only where there may be a GPU: it takes seconds

    return tuple(found) if torch.cuda.is_available() else ()
