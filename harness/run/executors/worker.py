"""Cells in a worker process that may crash, hang or be killed without harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from harness.catalog.code import is_builtin
from harness.identity.cell import Cell
from harness.io.streams import tolerate
from harness.results.record import Failure
from harness.run.executors.base import Watch
from harness.run.runner import CellRunner, Measured, Progress, Settings, failed_record, now

_exit = os._exit  # as it is before any cell runs, see `exits_raised`
_PROGRESS_INTERVAL = 0.2  # seconds between two progress messages of a worker


class WorkerProcess:
    """Runs cells in one spawned process that is kept between cells of the project's own methods; replaced if it dies
    or times out, and after a failure or code of others, whatever that may have left behind.
    """

    def __init__(self, settings: Settings, timeout: float | None = None) -> None:
        self._settings = settings
        self._timeout = timeout
        self._process: SpawnProcess | None = None
        self._connection: Connection[object, object] | None = None

    def map(self, cells: Iterable[Cell], watch: Watch) -> Iterator[Measured]:
        """Measure the cells one after the other; if the worker dies or takes too long, its cell has failed."""
        for cell in cells:
            watch(cell, "", 0.0)
            yield self._measure(cell, partial(watch, cell))

    def _measure(self, cell: Cell, progress: Progress) -> Measured:
        started, clock = now(), time.perf_counter()
        try:
            connection = self._ready()
            connection.send(cell)
            measured = self._receive(connection, progress, self._timeout)
        except TimeoutError:
            self.close()
            failure = Failure(type="Timeout", message=f"took longer than {self._timeout:g} seconds")
        except (EOFError, OSError):
            failure = Failure(type="WorkerDied", message=self._cause_of_death())
            self.close()
        else:
            assert isinstance(measured, Measured)
            if measured.record.status == "failed" or not is_builtin(self._settings.catalog, cell):
                self.close()
            return measured
        return Measured(failed_record(self._settings, cell, failure, started, time.perf_counter() - clock))

    def close(self) -> None:
        """Kill the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _ready(self) -> Connection[object, object]:
        """The connection to a worker that has started; importing torch does not count as the cell's time."""
        if self._connection is None or self._process is None or not self._process.is_alive():
            self.close()
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=False)
            with _interrupts_ignored():
                self._process.start()
            theirs.close()
            self._receive(self._connection, lambda *_: None, None)
        return self._connection

    def _receive(self, connection: Connection[object, object], progress: Progress, timeout: float | None) -> object:
        """The next message that is not about progress."""
        assert self._process is not None
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            # The pipe alone is not enough: a child of a dead worker may hold its other end open.
            happened = wait([connection, self._process.sentinel], left)
            if not happened:
                raise TimeoutError
            if connection not in happened and not connection.poll():
                raise EOFError
            message = connection.recv()
            if not isinstance(message, tuple):
                return message
            progress(*message)

    def _cause_of_death(self) -> str:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
            return f"worker died with signal {-code} ({name}){hint}"
        return f"worker died with exit code {code}"


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started inside ignores Ctrl-C from its first instruction: stopping is the parent's job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection[object, object], settings: Settings) -> None:
    """Main function of the worker."""
    tolerate()  # a method that prints must not fail because nobody reads
    threading.Thread(target=_die_with_parent, daemon=True).start()
    last = 0.0

    def progress(text: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_INTERVAL:
            last = time.monotonic()
            connection.send((text, fraction))

    runner = CellRunner(settings)
    connection.send("ready")
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        assert isinstance(cell, Cell)
        started, clock = now(), time.perf_counter()
        measured = runner.measure(cell, progress)
        try:
            connection.send(measured)
        except (TypeError, AttributeError, ValueError) as error:  # outcomes that cannot be pickled
            failure = Failure(type=type(error).__name__, message=f"the result cannot be sent: {error}")
            connection.send(Measured(failed_record(settings, cell, failure, started, time.perf_counter() - clock)))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _exit(1)
