"""What one job does: it takes cells from the queue and measures them until none waits, or its time is up."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from multiprocessing.connection import wait
from pathlib import Path

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.identity.code import Code
from harness.io.files import this_machine
from harness.plan.estimate import Estimator
from harness.results.record import Failure
from harness.results.store import Store
from harness.run.executors.remote import LOST, Facts, adopt, lack, machine, objection, with_losses
from harness.run.executors.slurm.queue import (
    MOST_LOSSES,
    Beat,
    Claim,
    Ended,
    Queue,
    check_shared,
    host_name,
)
from harness.run.executors.slurm.scheduler import requeue, seconds_of, time_left
from harness.run.executors.worker import WorkerProcess
from harness.run.runner import Measured, Settings, failed_record, now
from harness.run.sweep import keep
from harness.run.work import Work

_TICK = 0.5  # seconds between two looks at signals
_BEAT = 5.0  # seconds between two beats
_LOOK = 30.0  # seconds between two looks for lost hosts
_MARGIN = 1.5  # a cell may take so many times what it is expected to


@dataclass(frozen=True)
class Host:
    """Called by a job, wherever that runs: measures cells of a queue with one worker process, into a results folder.

    Args:
        queue: Its folder.
        results: The folder of records.
        settings: What cells are run with.
        timeout: Seconds after which a cell counts as failed.
        limit: A job's time as Slurm writes it, where there is no Slurm to ask.
        variables: Of the submitter's environment, those that choose how numbers are rounded.
    """

    queue: Path
    results: Path
    settings: Settings
    timeout: float | None = None
    limit: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> str:
        """Returns why it ended."""
        check_shared(self.queue)
        adopt(self.variables)
        job = os.environ.get("SLURM_JOB_ID", "")
        stopped: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):  # preempted, cancelled, or at the end of its time
            signal.signal(number, lambda number, _: stopped.append(number))
        for number in (signal.SIGUSR2, signal.SIGCONT):  # submitit and Slurm send them as well
            signal.signal(number, signal.SIG_IGN)
        left = time_left(job) if job else seconds_of(self.limit) if self.limit else inf
        end = time.monotonic() + left
        drain = Drain(
            Queue(self.queue),
            Store(self.results),
            self.settings,
            WorkerProcess(self.settings, self.timeout),
            job=_shown_job(),
            time_left=lambda: end - time.monotonic(),
            stopped=lambda: bool(stopped),
        )
        why = drain.run()
        if why == TIME_IS_UP and drain.measured and job and requeue(job):
            why = f"{why}; it is queued again"
        return why


STOPPED = "stopped"
NOTHING_WAITS = "nothing waits"
TIME_IS_UP = "no cell that waits fits into the time that is left"


class Drain:
    """The life of a host; apart from `Host` so that it needs no job."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        settings: Settings,
        worker: WorkerProcess,
        *,
        job: str,
        time_left: Callable[[], float],
        stopped: Callable[[], bool],
    ) -> None:
        self._queue = queue
        self._store = store
        self._settings = settings
        self._worker = worker
        self._time_left = time_left
        self._stopped = stopped
        self._lost_after = queue.header.lost_after
        self._estimator = Estimator()
        self._longest = 0.0  # seconds of a cell here
        self._last: Cell | None = None
        self._looked = 0.0
        self._beaten = -inf
        self._beat = Beat(host=host_name(job), node=_node(), job=job, machine=this_machine(), pid=os.getpid())

    @property
    def measured(self) -> int:
        """How many cells it has measured."""
        return self._beat.measured

    @property
    def place(self) -> str:
        """Job and node, for sentences."""
        return f"job {self._beat.job} on node {self._beat.node}"

    def run(self) -> str:
        """Measure until nothing waits, time is up or the job is stopped. Returns which of these.

        Raises:
            UsageError: cells cannot be measured here, for example since the code is another; the queue is as before.
        """
        self._say()
        refused = False
        try:
            why = self._drain()
        except UsageError as error:
            why, refused = str(error), True
            if self._stopped():  # the worker was told before this process
                why, refused = STOPPED, False
            else:
                raise
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._worker.close()
            self._say(left=why, refused=refused, key="", text="")
            _log(f"ends: {why}")
        return why

    def _drain(self) -> str:
        if self._queue.waiting():
            self._start()
        while not self._stopped():
            self._take_from_lost()
            claim, why = self._next()
            if claim is not None:
                self._measure(claim)
            elif why:
                return why
        return STOPPED

    def _next(self) -> tuple[Claim | None, str]:
        """A cell to measure; or why there is none; neither where another host was faster."""
        entries = self._queue.entries
        waiting = [entries[key].cell for key in self._queue.waiting() if key in entries]
        fitting = {cell.key: cell for cell in waiting if self._fits(cell)}
        if not fitting:
            return None, TIME_IS_UP if waiting else NOTHING_WAITS
        cell = self._choice(fitting)
        claim = None if cell is None else self._queue.claim(cell.key, self._beat.host)
        return claim, ""

    def _choice(self, fitting: Mapping[str, Cell]) -> Cell | None:
        """The best of the cells for this host, by the policy of all executors."""
        entries = self._queue.entries
        running = {key: host for key, host in self._queue.running().items() if key in entries and key not in fitting}
        cells = [e.cell for key, e in entries.items() if key in fitting or key in running]
        if self._last is not None:
            cells.append(self._last)
        work = Work(cells, self.expected, {key: entry.images for key, entry in entries.items()})
        if self._last is not None:
            work.took(self._last, self._beat.host)
            work.finished(self._last)
        for key in self._queue.ended():
            if key in entries and entries[key].images:
                work.made(entries[key].cell)
        for key, host in running.items():
            work.took(entries[key].cell, host)
        return work.take(self._beat.host)

    def _fits(self, cell: Cell) -> bool:
        """Whether the cell may be expected to end in time; a host that has all its time takes what just fits."""
        expected = self.expected(cell)
        if expected is None:
            expected = self._longest
        margin = _MARGIN if self.measured else 1.0
        return self._time_left() > expected * margin

    def expected(self, cell: Cell) -> float | None:
        """Seconds that a cell may take: as it was seen here, else as it was known when it was submitted."""
        seen = self._estimator.seconds(cell)
        return self._queue.entries[cell.key].expected if seen is None else seen

    def _measure(self, claim: Claim) -> None:
        entry = self._queue.entries[claim.key]
        cell = entry.cell
        if _ended_before(self._queue, self._store, claim):
            return
        try:
            self._check(cell, Code(entry.code, tuple(entry.versions.items())))
            began = time.monotonic()
            measured = self._measured(claim, cell, began)
            if measured is None:
                return
            measured = with_losses(
                measured, [f"measured again after its host was lost: {each}" for each in claim.losses]
            )
            if self._queue.holds(claim):
                keep(measured, self._store)
                record = measured.record
                ended = Ended(
                    seconds=record.seconds, node=_node(), record=record if record.status == "failed" else None
                )
                self._queue.end(claim, record.status, ended)
                _log(f"{cell.key[:12]} {cell.label}: {record.status} after {record.seconds:.1f} s")
                self._estimator.learn(record)
                self._longest = max(self._longest, record.seconds)
        except BaseException:
            self._queue.give_back(claim)
            raise
        self._last = cell
        self._say(measured=self.measured + 1, key="", text="")

    def _measured(self, claim: Claim, cell: Cell, began: float) -> Measured | None:
        """The result; None if the job was stopped, or others took the cell since this host seemed to be lost."""
        self._say(key=cell.key, text="", fraction=0.0, seconds=0.0, began=now())
        _log(f"{cell.key[:12]} {cell.label}: begins")
        self._worker.begin(cell)

        def progress(text: str, fraction: float) -> None:
            self._beat = self._beat.model_copy(update={"text": text, "fraction": fraction})

        while True:
            due = self._worker.due
            wait(self._worker.handles, _TICK if due is None else min(due, _TICK))
            measured = self._worker.step(progress)
            if measured is not None and not self._was_stopped(measured):
                return measured
            if self._stopped():
                self._worker.close()
                late = self._time_left() <= _TICK
                loss = f"{self.place} had no more time after {time.monotonic() - began:.0f} s of the cell"
                self._queue.give_back(claim, loss if late else "")
                return None
            if time.monotonic() - self._beaten >= _BEAT:
                self._say(seconds=time.monotonic() - began)
                if not self._queue.holds(claim):
                    self._worker.close()
                    return None

    def _was_stopped(self, measured: Measured) -> bool:
        """Whether a worker died since its job is being stopped: Slurm signals all processes of a job at once."""
        failure = measured.record.failure
        if failure is None or failure.type != "WorkerDied":
            return False
        if not self._stopped():
            time.sleep(_TICK)  # this process may be the last to be told
        return self._stopped()

    def _take_from_lost(self) -> None:
        """Let cells of lost hosts wait again; those that were lost too often have failed."""
        if time.monotonic() - self._looked < _LOOK and self._looked:
            return
        self._looked = time.monotonic()
        recover(self._queue, self._store, self._settings, self._beat.host, self._lost_after)

    def _start(self) -> None:
        """Start the worker. The first host of a queue says on what kind of machine all cells are measured.

        Raises:
            UsageError: it does not start, or computes on something else.
        """
        try:
            own = dict(self._worker.start())
        except RuntimeError as error:
            raise UsageError(f"node {_node()}: {error}") from None
        first = self._queue.agree_on_machine(own)
        if first != own:
            raise UsageError(
                f"node {_node()}: it computes on {machine(own)}, the first host on {machine(first)}, which may give "
                "other numbers; ask for one kind with --slurm constraint=... or --slurm partition=..."
            )

    def _check(self, cell: Cell, wanted: Code) -> None:
        """Raises UsageError if the cell's number would not be that of the machine that submitted it."""
        facts = Facts(_node(), _node(), (code_for(self._settings.catalog, cell),), fault=lack(self._settings))
        text = objection(facts, [wanted])
        if text:
            raise UsageError(f"node {_node()}: {text.replace('this machine', 'the one that submitted')}")

    def _say(self, **what: object) -> None:
        self._beat = self._beat.model_copy(update=what)
        self._beaten = time.monotonic()
        with suppress(OSError):  # a full disk is told where a record cannot be written
            self._queue.beat(self._beat)


def recover(queue: Queue, store: Store, settings: Settings, me: str, lost_after: float) -> dict[str, tuple[str, ...]]:
    """Let cells whose host is lost wait again; one that lost too many hosts has failed.

    Returns:
        Key -> losses of the cells that were found.
    """
    beats = {beat.host: beat for beat in queue.beats()}
    found = {}
    for key, host in queue.lost(lost_after).items():
        claim = queue.take_over(key, host, me)
        if claim is None:
            continue
        if _ended_before(queue, store, claim):
            continue
        beat = beats.get(host)
        loss = f"job {beat.job} on node {beat.node}" if beat else f"host {host}"
        losses = (*claim.losses, loss)
        found[key] = losses
        if len(losses) < MOST_LOSSES or key not in queue.entries:
            queue.give_back(claim, loss)
            continue
        failure = Failure(type=LOST, message=f"its host was lost twice: {'; then '.join(losses)}")
        seconds = beat.seconds if beat else 0.0
        started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        record = failed_record(settings, queue.entries[key].cell, failure, started, seconds)
        keep(Measured(record), store)
        queue.end(claim, "failed", Ended(seconds=seconds, node=beat.node if beat else "", record=record))
    return found


def _ended_before(queue: Queue, store: Store, claim: Claim) -> bool:
    """Whether the cell has its result: a host was lost just after it had kept that."""
    entry = queue.entries.get(claim.key)
    if entry is None or entry.again or not store.has_result(claim.key):
        return False
    record = store.record(claim.key)
    if record is None:
        return False
    queue.end(claim, record.status, Ended(seconds=record.seconds, node=""))
    return True


def _log(text: str) -> None:
    """A line of the job's log."""
    with suppress(OSError):
        sys.stdout.write(f"{now()} {text}\n")
        sys.stdout.flush()


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _shown_job() -> str:
    """The job as Slurm shows it: element of an array, or one alone."""
    variables = os.environ
    if "SLURM_ARRAY_JOB_ID" in variables:
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables.get('SLURM_ARRAY_TASK_ID', '')}"
    return variables.get("SLURM_JOB_ID", str(os.getppid()))
