"""What runs on a node of a Ray cluster: an actor that holds one worker process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.identity.cell import Cell
from harness.run.executors.remote import Facts, Mark, adopt, enter, look
from harness.run.executors.worker import WorkerProcess
from harness.run.runner import Measured, Settings

_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


class Host:
    """Measures cells in a worker process, which an actor's death takes with it.

    Args:
        settings: What cells are run with.
        timeout: Seconds after which a cell counts as failed.
        variables: Those of the machine that plans that records tell.
        folder: Where that machine works.
        share: Part of a GPU's memory that the worker may take.
    """

    def __init__(
        self,
        settings: Settings,
        timeout: float | None,
        variables: Mapping[str, str],
        folder: Path,
        share: float = 1.0,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker inherits it; stopping is the driver's job
        adopt(variables)
        enter(folder)
        if share < 1.0:
            asked = os.environ.get(_ALLOCATOR)
            os.environ[_ALLOCATOR] = f"{asked + ',' if asked else ''}per_process_memory_fraction:{share:g}"
        self._settings = settings
        self._worker = WorkerProcess(settings, timeout)
        self._said = "", "", 0.0

    def look(self, cells: Sequence[Cell], mark: Mark) -> Facts:
        """What there is to say of this host; its worker is ready afterwards, unless there is a fault.

        Raises:
            ChildProcessError: the worker died while it started.
        """
        import ray

        facts = look(self._settings, cells, mark, ray.get_runtime_context().get_node_id())
        if facts.fault:
            return facts
        try:
            return replace(facts, processor=self._worker.start())
        except RuntimeError as error:
            return replace(facts, fault=f"its worker does not start ({error})")

    def measure(self, cell: Cell) -> Measured:
        """The result of a cell."""

        def note(text: str, fraction: float) -> None:
            self._said = cell.key, str(text), fraction

        self._said = cell.key, "", 0.0
        return self._worker.measure(cell, note)

    def progress(self) -> tuple[str, str, float]:
        """Key of the last cell, what it is doing and how far it is."""
        return self._said
