"""Cells on this machine, several at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import wait

from harness.identity.cell import Cell
from harness.run.executors.base import Resources, Watch
from harness.run.executors.worker import WorkerProcess
from harness.run.machine import gpus
from harness.run.runner import Measured, Settings
from harness.run.work import Work


class Jobs:
    """As many worker processes as there are jobs (one if nothing is said), served by one thread. Where there are GPUs,
    the workers share them out.
    """

    def __init__(self, settings: Settings, resources: Resources | None = None) -> None:
        resources = resources or Resources()
        cards = gpus(settings.device)
        self._workers = {}
        for number in range(resources.jobs or 1):
            own = {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}
            self._workers[f"worker {number}"] = WorkerProcess(settings, resources.timeout, own)

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """Measure the cells; if a worker dies or takes too long, its cell has failed."""
        running: dict[str, Cell] = {}
        while True:
            for name, worker in self._workers.items():
                cell = None if name in running else work.take(name)
                if cell is not None:
                    running[name] = cell
                    watch(cell, "", 0.0)
                    worker.begin(cell)
            if not running:
                return
            at_work = {name: self._workers[name] for name in running}
            due = [worker.due for worker in at_work.values() if worker.due is not None]
            wait([handle for worker in at_work.values() for handle in worker.handles], min(due, default=None))
            for name, worker in at_work.items():
                measured = worker.step(partial(watch, running[name]))
                if measured is not None:
                    work.finished(running.pop(name))
                    yield measured

    def close(self) -> None:
        """Kill the workers."""
        with contextlib.ExitStack() as all_of_them:
            for worker in self._workers.values():
                all_of_them.callback(worker.close)
