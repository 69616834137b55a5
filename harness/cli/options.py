"""What options of several commands share: their declarations, what their texts mean, and which values are refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.api.errors import UsageError
from harness.identity.names import parse_value

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
MOST_THREADS = 1024
WIDTH = 140  # of tables that do not go to a terminal

Trust = Annotated[
    bool, typer.Option("--trust-configs", help="Configs that --models names may run code; see docs/dense.md.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the suite's data, if it needs one.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="No worker process: for debugging.")]
ResultsFolder = Annotated[Path, typer.Option(help="Results folder.")]


def split(text: str) -> tuple[str, ...]:
    """The parts of a text between commas, each once."""
    return once(part.strip() for part in text.split(","))


def once(parts: Iterable[str]) -> tuple[str, ...]:
    """The parts that are not empty, each once."""
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_overrides(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.FIELD=VALUE` texts as a nested dict; a value is JSON, or else a string.

    Raises:
        UsageError: a text of another form.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        name, dot, option = path.strip().partition(".")
        if not (equals and dot and name and option):
            raise UsageError(f"--option '{text}' is not of the form NAME.FIELD=VALUE; for example psaq.steps=100")
        overrides.setdefault(name, {})[option] = parse_value(value)
    return overrides


def executor_name(name: str, in_process: bool) -> str:
    """The name of the executor; `--in-process` is a short form of it.

    Raises:
        UsageError: the two contradict each other.
    """
    if in_process and name not in ("", "in-process"):
        raise UsageError(f"--in-process and --executor {name} contradict each other; leave one out")
    return "in-process" if in_process else name or "worker"


def check_device(device: str) -> None:
    """See to it that torch has the device.

    Raises:
        UsageError: it has not.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu")


def check_threads(threads: int | None) -> None:
    """See to it that a number of threads is sensible.

    Raises:
        UsageError: it is not.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads must be 1 to {MOST_THREADS:,}, not {threads}")


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cgroup v2) if there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (int(number) for number in CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no such file, or `max`: no quota
        return count
    return max(1, min(count, quota // period)) if quota > 0 < period else count


def make_console() -> Console:
    """Where a command prints; wide enough for the tables where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
