"""The executor: puts cells into a queue, submits hosts that drain it, and follows what they do."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.results.provenance import told_variables
from harness.results.store import Store
from harness.run.executors.base import Detached, Resources, Watch
from harness.run.executors.remote import worth
from harness.run.executors.slurm.host import Host, recover
from harness.run.executors.slurm.queue import FOLDER, LOST_AFTER, Entry, Header, Queue, called, host_name, queues
from harness.run.executors.slurm.scheduler import Job, cancel, jobs_of, scheduler
from harness.run.runner import Measured, Settings
from harness.run.work import Work

HOSTS = 4  # at a time, unless the user says how many
_POLL = 1.0  # seconds between two looks at the folder
_ASK = 10.0  # seconds between two questions to the scheduler
_SLOW_START = 60.0  # seconds after which it is said that no host has started


class SlurmExecutor:
    """Hosts are the jobs of one array. They write results into the results folder themselves, so that they go on when
    this process has ended, with `detach` at once; the next one follows them and submits only what no living job has.
    """

    lost_after = LOST_AFTER

    def __init__(self, settings: Settings, resources: Resources) -> None:
        if settings.results is None:
            raise UsageError("--executor slurm needs a results folder on a disk that all nodes share")
        self._results: Path = settings.results
        self._settings = replace(settings, results=None)
        self._resources = resources
        self._scheduler = scheduler(resources.slurm, resources.cpus, resources.gpus, settings.threads)
        self._store = Store(self._results)
        self._me = host_name("driver")
        self._console = Console(stderr=True)
        self._open: list[Queue] = []  # those that are followed
        # What ends from now on is news to whoever planned before.
        self._known = {queue.folder: set(queue.ended()) for queue in queues(self._results)}

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """The cells' results as hosts write them.

        Raises:
            Detached: with `detach`, once the cells are handed over.
            UsageError: the jobs are refused, never start, or end before all cells have a result.
            KeyboardInterrupt: the user interrupted.
        """
        wanted = {cell.key: cell for cell in work.cells}
        losses: dict[str, tuple[str, ...]] = {}
        handed: dict[str, Queue] = {}
        news: list[Measured] = []
        for queue in queues(self._results):
            lives = self._lives(queue)
            if not lives:
                self._settle(queue)
            # Cells move on meanwhile, so that those which have ended are looked at last.
            going_on = {*queue.waiting(), *queue.running(), *queue.waiting()} & set(wanted)
            ended = {key: status for key, status in queue.ended().items() if key in wanted}
            for key in set(ended) - self._known.get(queue.folder, set()):
                measured = self._result(queue, key, ended[key])
                if measured is not None:
                    del wanted[key]
                    news.append(measured)
            if lives:
                handed |= dict.fromkeys(going_on & set(wanted), queue)
            else:
                losses |= queue.losses()
                shutil.rmtree(queue.folder, ignore_errors=True)
        yield from news
        self._open = list({queue.folder: queue for queue in handed.values()}.values())
        for queue in self._open:
            self._say(
                f"{called(queue.header)} is at work on {_cells(handed, queue)}; nothing of that is submitted again"
            )
        rest = [cell for cell in wanted.values() if cell.key not in handed]
        if rest:
            queue = self._new(rest, work, losses)
            handed |= {cell.key: queue for cell in rest}
            self._submit(queue)
            self._open.append(queue)
        if self._resources.detach:
            names = " and ".join(called(queue.header) for queue in self._open)
            self._open = []
            raise Detached(
                f"{names} goes on alone; dfqbench watch {self._results} shows how far it is, and the same command "
                "without --detach follows it, makes the tables and goes on with what is left"
            )
        for queue in list(self._open):
            mine = {key for key, holder in handed.items() if holder is queue}
            yield from self._follow(queue, mine, work, watch)
            self._open.remove(queue)

    def close(self) -> None:
        """End the jobs, unless the user wants them to go on."""
        for queue in self._open:
            header = queue.header
            with suppress(KeyboardInterrupt, EOFError):
                if not self._console.is_terminal or self._yes(f"End {called(header)} as well? [Y/n] "):
                    cancel(header)
                    self._say(f"{called(header)} is ended; what was measured is kept")
                    continue
            self._say(f"{called(header)} goes on; dfqbench watch {self._results}")
        self._open = []

    def _yes(self, question: str) -> bool:
        return not self._console.input(question, markup=False).strip().lower().startswith("n")

    def _lives(self, queue: Queue) -> bool:
        """Whether any job of a queue may still do something."""
        jobs = jobs_of(queue.header)
        if jobs is None:
            raise UsageError("squeue does not answer, so it is not known what runs already; try again later")
        return any(not job.over for job in jobs)

    @property
    def _cluster(self) -> str:
        return self._resources.slurm.get("cluster", "slurm")

    def _settle(self, queue: Queue) -> None:
        """Let the cells of a queue whose jobs are over wait, with their losses, or end."""
        while True:  # a job that was cancelled a moment ago gives back what it has
            recover(queue, self._store, self._settings, self._me, queue.header.lost_after)
            if not queue.running():
                break
            time.sleep(_POLL)

    def _new(self, cells: list[Cell], work: Work, losses: dict[str, tuple[str, ...]]) -> Queue:
        name = f"dfqbench-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        entries = []
        for cell in cells:
            code = code_for(self._settings.catalog, cell)
            entries.append(
                Entry(
                    cell=cell,
                    code=code.fingerprint,
                    versions=dict(code.versions),
                    expected=work.expected(cell),
                    images=work.images.get(cell.key, ""),
                    again=self._store.has_result(cell.key),
                )
            )
        header = Header(name=name, cluster=self._cluster, lost_after=self.lost_after)
        try:
            return Queue.make(self._results / FOLDER / name, header, entries, losses)
        except OSError as error:
            text = f"cannot write the queue in {self._results} ({error.strerror}); nothing was submitted"
            raise UsageError(text) from None

    def _submit(self, queue: Queue) -> None:
        """Submit as many hosts as the queue is worth."""
        waiting = [queue.entries[key] for key in queue.waiting()]
        most = self._resources.jobs or HOSTS
        number = max(1, min(most, len(waiting), worth(entry.expected for entry in waiting) or most))
        limit = self._resources.slurm.get("time")
        variables = told_variables(os.environ)
        host = Host(queue.folder, self._results, self._settings, self._resources.timeout, limit, variables)
        header = queue.header
        try:
            jobs = self._scheduler.submit(queue.folder / "jobs", host, number, header.name)
        except BaseException:
            if not header.jobs:
                shutil.rmtree(queue.folder, ignore_errors=True)
            raise
        queue.describe(header.model_copy(update={"jobs": (*header.jobs, *jobs), "hosts": header.hosts + number}))
        self._say(f"{called(queue.header)}: {number} {'hosts' if number > 1 else 'host'} for {len(waiting)} cells")

    def _follow(self, queue: Queue, left: set[str], work: Work, watch: Watch) -> Iterator[Measured]:
        """The results of the cells `left` of a queue, until all are there."""
        asked = began = time.monotonic()
        silent = True
        progress = -1  # how far the queue was when hosts were submitted last
        while True:
            ended = queue.ended()
            for key in left & set(ended):
                left.discard(key)
                measured = self._result(queue, key, ended[key])
                if measured is not None:
                    yield measured
            if not left:
                return
            self._show(queue, left, watch)
            if time.monotonic() - asked >= _ASK:
                asked = time.monotonic()
                recover(queue, self._store, self._settings, self._me, queue.header.lost_after)
                jobs = jobs_of(queue.header)
                if jobs is not None and all(job.over for job in jobs):
                    reached = len(queue.ended()) + sum(map(len, queue.losses().values()))
                    if queue.running() or left & set(queue.ended()):
                        continue
                    if any(job.state.startswith("CANCELLED") for job in jobs) or reached <= progress:
                        raise UsageError(self._why(queue, jobs, left))
                    progress = reached
                    self._submit(queue)
                elif jobs and not queue.beats():
                    self._give_up(queue, jobs)
                    if silent and time.monotonic() - began >= _SLOW_START:
                        silent = False
                        reasons = ", ".join(sorted({job.reason for job in jobs if job.state == "PENDING"}))
                        self._say(
                            f"No host of {called(queue.header)} has started; Slurm says {reasons or jobs[0].state}"
                        )
            time.sleep(_POLL)

    def _result(self, queue: Queue, key: str, status: str) -> Measured | None:
        ended = queue.result(key, status)
        record = ended.record or self._store.record(key)
        return None if record is None else Measured(record, kept=True)

    def _show(self, queue: Queue, left: set[str], watch: Watch) -> None:
        for beat in queue.beats():
            if beat.key in left and not beat.left:
                watch(queue.entries[beat.key].cell, beat.text, beat.fraction)

    def _give_up(self, queue: Queue, jobs: list[Job]) -> None:
        """End jobs that would wait for ever."""
        hopeless = [job for job in jobs if job.hopeless]
        if len(hopeless) == len(jobs):
            cancel(queue.header)
            self._open.remove(queue)
            raise UsageError(
                f"{called(queue.header)} would never start (Slurm says {hopeless[0].reason}) and is cancelled; "
                "change what --slurm, --cpus and --gpus ask for"
            )

    def _why(self, queue: Queue, jobs: list[Job], left: set[str]) -> str:
        """One sentence: why the jobs are over and cells are left."""
        self._open.remove(queue)
        head = f"{called(queue.header)} has ended with {len(left)} cells not measured"
        go_on = "the same command goes on with them"
        beats = queue.beats()
        said = [beat.left for beat in beats if beat.refused] or [beat.left for beat in beats if beat.left]
        if any(job.state.startswith("CANCELLED") for job in jobs):
            return f"{head}, since it was cancelled; {go_on}"
        if said:
            return f"{head}: {said[-1]}; {go_on}"
        log = _last_line(queue.folder / "jobs")
        if log:
            return f"{head}: {log} (logs are in {queue.folder / 'jobs'})"
        return (
            f"{head} and no sign of a host; is {self._results} on a disk that the nodes share, with this environment? "
            f"{go_on}"
        )

    def _say(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _cells(handed: dict[str, Queue], queue: Queue) -> str:
    number = sum(holder is queue for holder in handed.values())
    return f"{number} of these cells" if number > 1 else "one of these cells"


def _last_line(folder: Path) -> str:
    """The last words of the job that was the last to say any."""
    logs = sorted(folder.glob("*.err"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return ""
