"""Executors by name."""

from __future__ import annotations

from harness.api.errors import UsageError
from harness.api.plugins import ExecutorInfo
from harness.catalog.registry import Registry
from harness.run.executors.base import Executor
from harness.run.runner import Settings

WORKER = ExecutorInfo(
    name="worker",
    summary="one cell at a time in a process of its own, which may crash, hang or be killed without harm",
    target="harness.run.executors.worker:WorkerProcess",
    stops_cells=True,
)
IN_PROCESS = ExecutorInfo(
    name="in-process",
    summary="one cell at a time in this process, for debugging",
    target="harness.run.executors.in_process:InProcess",
)
_BUILTIN = {WORKER.name: f"{__name__}:WORKER", IN_PROCESS.name: f"{__name__}:IN_PROCESS"}


def find_executor(name: str, timeout: float | None = None) -> ExecutorInfo:
    """The executor called `name`, the project's own or that of an installed package.

    Raises:
        UsageError: there is none, it cannot be used, or it cannot keep to a timeout.
    """
    info = Registry("executor", _BUILTIN, "dfqbench.executors", ExecutorInfo).get(name)
    if timeout is not None and not info.stops_cells:
        raise UsageError(f"--timeout: executor '{name}' cannot stop a cell; leave out --timeout or use '{WORKER.name}'")
    return info


def open_executor(name: str, settings: Settings, timeout: float | None = None) -> Executor:
    """The executor called `name`, ready to run cells; the caller closes it.

    Raises:
        UsageError: as `find_executor`, or its code cannot be imported.
    """
    executor: Executor = find_executor(name, timeout).load()(settings, timeout)
    return executor
