"""Other processes, as tests look at them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterator


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of each process of the machine."""
    listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, parent, what = line.split(None, 2)
        yield int(pid), int(parent), what


def children(parents: Collection[int], called: str = "") -> list[int]:
    """Processes that these have started; with `called`, those that have it in their command lines."""
    return [pid for pid, parent, what in processes() if parent in parents and called in what]


def workers(starters: Collection[int]) -> list[int]:
    """The processes that measure cells for these, which are children of a server that these have started."""
    return children(children(starters, "forkserver"))


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
