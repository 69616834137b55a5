"""A worker process that measures cells and may crash, hang or be killed without harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from harness.api.errors import first_line
from harness.catalog.code import is_builtin
from harness.identity.cell import Cell
from harness.io.streams import tolerate
from harness.results.provenance import processor_of
from harness.results.record import Failure
from harness.run.clock import Waiting
from harness.run.executors.processes import end, new_process
from harness.run.runner import CellRunner, Measured, Progress, Settings, failed_record, now, resolve_device

_exit = os._exit  # as it is before any cell runs, see `exits_raised`
_PROGRESS_INTERVAL = 0.2  # seconds between two progress messages of a worker


class _Ready(NamedTuple):
    """What a worker says when it has started: what computes there, and what keeps it from working, if anything."""

    processor: Mapping[str, str]
    fault: str = ""


class WorkerProcess:
    """Measures one cell at a time in a process of its own that is kept between cells of the project's own methods;
    replaced if it dies or times out, and after a failure or code of others, whatever that may have left behind.

    Either `measure` is called, or `begin` and then `step` whenever one of `handles` is ready or `due` has passed, so
    that one thread can serve many workers.

    Args:
        settings: What cells are run with.
        timeout: Seconds after which a cell counts as failed; None: it may take as long as it likes.
        environment: Variables that the process has beside those of this one.
    """

    def __init__(
        self, settings: Settings, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._settings = settings
        self._timeout = timeout
        self._environment = dict(environment or {})
        self._process: BaseProcess | None = None
        self._connection: Connection[object, object] | None = None
        self._cell: Cell | None = None
        self._waits = False  # until the process has started; importing torch does not count as the cell's time
        self._started, self._clock = "", 0.0
        self._waited = 0.0  # seconds that the cell spends waiting for others, which count neither

    def measure(self, cell: Cell, progress: Progress) -> Measured:
        """The result of `cell`; if the worker dies or takes too long, the cell has failed."""
        self.begin(cell)
        while True:
            wait(self.handles, self.due)
            measured = self.step(progress)
            if measured is not None:
                return measured

    def start(self) -> Mapping[str, str]:
        """Start the process already now, if it is not there; what computes in it, as
        `harness.results.provenance.processor_of` tells it.

        Raises:
            RuntimeError: it cannot work, for example because torch sees no CUDA device.
            ChildProcessError: it died, which another may not.
        """
        self._stop()
        self._start()
        assert self._connection is not None
        try:
            wait(self.handles)
            ready = self._connection.recv()
        except (EOFError, OSError):
            raise ChildProcessError(self._cause_of_death()) from None
        assert isinstance(ready, _Ready)
        self._waits = False
        if ready.fault:
            self._stop()
            raise RuntimeError(ready.fault)
        return ready.processor

    @property
    def handles(self) -> list[Connection[object, object] | int]:
        """What becomes ready when the worker has something to say, or has died."""
        assert self._connection is not None
        assert self._process is not None
        # The pipe alone is not enough: a child of a dead worker may hold its other end open.
        return [self._connection, self._process.sentinel]

    @property
    def due(self) -> float | None:
        """Seconds until the cell has taken too long; None if it may take as long as it likes."""
        if self._timeout is None or self._waits:
            return None
        return max(self._clock + self._waited + self._timeout - time.monotonic(), 0.0)

    def begin(self, cell: Cell) -> None:
        """Start measuring; the worker must not be at work already."""
        assert self._cell is None
        self._cell = cell
        self._started, self._clock, self._waited = now(), time.monotonic(), 0.0
        if self._connection is None or self._process is None or not self._process.is_alive():
            self._stop()
            self._start()
        else:
            self._send()

    def step(self, progress: Progress) -> Measured | None:
        """Take in what the worker said; the result if it is there, else None."""
        assert self._cell is not None
        assert self._connection is not None
        assert self._process is not None
        try:
            while self._connection.poll():
                message = self._connection.recv()
                if isinstance(message, _Ready):
                    if message.fault:
                        return self._failed("WorkerDied", f"worker did not start ({message.fault})")
                    self._waits = False
                    self._started, self._clock = now(), time.monotonic()
                    self._send()
                elif isinstance(message, Measured):
                    return self._done(message)
                elif isinstance(message, tuple):
                    if isinstance(message[0], Waiting):
                        self._waited = message[0].seconds
                    progress(*message)
            if not self._process.is_alive() and not self._connection.poll():
                raise EOFError
        except (EOFError, OSError):
            return self._failed("WorkerDied", self._cause_of_death())
        if self.due == 0.0:
            return self._failed("Timeout", f"took longer than {self._timeout:g} seconds")
        return None

    def close(self) -> None:
        """Kill the worker."""
        self._stop()
        self._cell = None

    def _done(self, measured: Measured) -> Measured:
        assert self._cell is not None
        if measured.record.status == "failed" or not is_builtin(self._settings.catalog, self._cell):
            self._stop()
        self._cell = None
        return measured

    def _failed(self, kind: str, why: str) -> Measured:
        assert self._cell is not None
        cell, self._cell = self._cell, None
        self._stop()
        seconds = max(time.monotonic() - self._clock - self._waited, 0.0)
        failure = Failure(type=kind, message=why)
        return Measured(failed_record(self._settings, cell, failure, self._started, seconds))

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._waits = True
        with _interrupts_ignored():
            self._process = new_process(_serve, (theirs, self._settings), self._environment)
            self._process.start()
        theirs.close()

    def _send(self) -> None:
        assert self._connection is not None
        # A worker that has just died is found by `step`.
        with contextlib.suppress(OSError):
            self._connection.send(self._cell)

    def _stop(self) -> None:
        if self._process is not None:
            end(self._process)
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self._waits = False

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

    try:
        runner = CellRunner(settings)
        ready = _Ready(processor_of(resolve_device(settings.device)))
    except Exception as error:
        connection.send(_Ready({}, f"{type(error).__name__}: {first_line(error)}"))
        raise
    connection.send(ready)
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
