"""Cells on a Ray cluster: each host is an actor around one worker process; results travel through Ray."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.api.errors import UsageError
from harness.results.provenance import told_variables
from harness.run.executors.base import Resources, Watch
from harness.run.executors.fleet import Fleet, Lost
from harness.run.executors.ray_connection import connect
from harness.run.executors.ray_host import Host
from harness.run.runner import Measured, Settings
from harness.run.work import Work

WAIT = 600.0  # seconds
_LONGEST = 300  # characters of a reason
_REASONS = {
    "NODE_OUT_OF_MEMORY": "its node ran out of memory",
    "because its node has died": "its node died or cannot be reached",
    "temporarily unavailable": "it cannot be reached",
    "worker process has died": "its process died or was killed",
}
_SLICE = 0.2  # seconds; Ray itself looks once a second whether the user has interrupted
# Two calls at a time: one that measures, one that says how far it is. Ray's own retries are off: those of a host that
# restarts would also fail calls that were sent to it meanwhile.
_ALONE = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}


class RayCluster:
    """Measures cells on the nodes of a Ray cluster, one at a time on each host.

    Raises:
        UsageError: no cluster is at the address, or what is asked of it makes no sense.
    """

    def __init__(self, settings: Settings, resources: Resources | None = None) -> None:
        resources = resources or Resources()
        _check_gpus(resources.gpus)
        self._ray = connect(resources.address)
        gpus = _gpus(settings.device, resources.gpus, self._ray.nodes())
        settings = replace(settings, device="cuda" if gpus else "cpu")
        hosts = RayHosts(self._ray, settings, resources.timeout, resources.cpus or settings.threads, gpus)
        wait = WAIT if resources.wait is None else resources.wait
        self._fleet = Fleet(hosts, settings, resources.jobs, wait)

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """Measure the cells; a cell whose host is lost is measured again by another.

        Raises:
            UsageError: no host starts.
        """
        return self._fleet.map(work, watch)

    def close(self) -> None:
        """Kill all hosts and leave the cluster."""
        self._fleet.close()
        self._ray.shutdown()


class RayHosts:
    """Starts hosts as Ray actors; a `harness.run.executors.fleet.Cluster`."""

    def __init__(self, ray: Any, settings: Settings, timeout: float | None, cpus: int, gpus: float) -> None:
        self._ray = ray
        self._cpus = cpus
        self._gpus = gpus
        self._class = ray.remote(**_ALONE, num_cpus=cpus, num_gpus=gpus)(Host)
        self._arguments = settings, timeout, told_variables(os.environ), Path.cwd(), min(gpus or 1.0, 1.0)

    def room(self, without: Collection[str]) -> int:
        """Hosts that the nodes have room for."""
        return sum(self._fit(node["Resources"]) for node in self._nodes(without))

    def start(self, without: Collection[str]) -> Any:
        """A new actor."""
        options = {"label_selector": {"ray.io/node-id": f"!in({','.join(without)})"}} if without else {}
        return self._class.options(**options).remote(*self._arguments)

    def ask(self, host: Any, what: str, *arguments: object) -> Any:
        """Call a method of an actor."""
        return getattr(host, what).remote(*arguments)

    def wait(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        """References of what is there."""
        if not tickets:
            time.sleep(seconds)
            return []
        end = time.monotonic() + seconds
        ready: list[Any] = []
        while not ready and time.monotonic() < end:
            ready, _ = self._ray.wait(list(tickets), num_returns=1, timeout=_SLICE)
        return self._ray.wait(list(tickets), num_returns=len(tickets), timeout=0)[0] if ready else []

    def answer(self, ticket: Any) -> Any:
        """What an actor returned.

        Raises:
            Lost: it is gone, its node is, or it raised.
        """
        try:
            return self._ray.get(ticket)
        except self._ray.exceptions.RayError as error:
            raise Lost(reason(error)) from None

    def stop(self, host: Any) -> None:
        """Kill an actor; its worker dies with it."""
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(host, no_restart=True)

    def lacks(self, without: Collection[str]) -> str:
        """Why no actor starts."""
        need = _amounts(self._cpus, self._gpus)
        nodes = self._nodes(without)
        if not nodes:
            return "the cluster has no node that could be used"
        if not any(self._fit(node["Resources"]) for node in nodes):
            most = [max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")]
            return f"each needs {need}, and of {len(nodes)} nodes none has that: at most {_amounts(*most)}"
        free = self._ray.available_resources()
        left = _amounts(free.get("CPU", 0), free.get("GPU", 0))
        return f"each needs {need}, and of the whole cluster {left} are free"

    def _nodes(self, without: Collection[str]) -> list[Any]:
        return [node for node in self._ray.nodes() if node["Alive"] and node["NodeID"] not in without]

    def _fit(self, resources: dict[str, float]) -> int:
        by_cpu = int(resources.get("CPU", 0) // self._cpus)
        if not self._gpus:
            return by_cpu
        cards = resources.get("GPU", 0)
        # Ray gives a part of a GPU only of one and the same.
        by_gpu = int(cards // self._gpus) if self._gpus >= 1 else int(cards) * math.floor(1 / self._gpus)
        return min(by_cpu, by_gpu)


def reason(error: Exception) -> str:
    """Why a host is gone, from what Ray says at length."""
    if getattr(error, "preempted", False):
        return "its node was preempted"
    text = str(error)
    for said, meant in _REASONS.items():
        if said in text:
            return meant
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_LONGEST]  # where an exception stands below a traceback


def _check_gpus(gpus: float | None) -> None:
    if gpus and gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus {gpus:g}: above one, Ray gives whole GPUs only")


def _gpus(device: str, asked: float | None, nodes: Sequence[Any]) -> float:
    """GPUs of each host: what was asked for, else one if the cluster has any and the device is not the CPU."""
    if asked is not None:
        return asked
    there = any(node["Alive"] and node["Resources"].get("GPU", 0) for node in nodes)
    return 1.0 if device == "cuda" or (device == "auto" and there) else 0.0


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
