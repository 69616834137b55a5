"""How processes that measure cells are started: fresh ones, without importing torch and timm anew for each.

Where the system can (Linux), a server imports the large packages once, and nothing else; a process is a fork of it.
What a cell leaves behind is gone with its process, as with a new interpreter, and the memory of the packages is shared.
Elsewhere each process is a new interpreter.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

FORKS = sys.platform == "linux"  # macOS has it too, but its system libraries do not survive a fork
# What takes most of the time until a first cell starts, and every cell needs. Not our own modules: they are imported
# after the fork, from where this process has them.
_PRELOADED = ("torch", "torchvision", "timm", "pandas")
_STARTING = threading.Lock()  # the environment is everybody's
_UNKNOWN = 255  # what a process ended with when the server can no longer say it


def new_process(target: Callable[..., None], arguments: tuple[object, ...], own: Mapping[str, str]) -> BaseProcess:
    """A process to be started, with the environment of this one.

    Args:
        target: What it calls; importable.
        arguments: With what; they are pickled.
        own: Variables that it has beside those of this process.
    """
    environment = {**os.environ, **own}
    if not FORKS:
        return multiprocessing.get_context("spawn").Process(target=_enter, args=(environment, target, arguments))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    _start_server()
    return context.Process(target=_enter, args=(environment, target, arguments))


def end(process: BaseProcess) -> None:
    """Kill a process and wait for it."""
    process.kill()
    process.join()
    if process.exitcode == _UNKNOWN and process.pid is not None:  # its server died first, and it may be at work yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _start_server() -> None:
    """Start the server unless it runs. It does not take a file of the working folder for a package of that name."""
    with _STARTING:
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            forkserver.ensure_running()
        finally:
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


def _enter(environment: Mapping[str, str], target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Main function of the process: its environment is not that of the server, which may be older."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)
