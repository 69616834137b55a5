"""`dfqbench watch`: how far the hosts are that drain a results folder's queues."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.api.errors import UsageError
from harness.io.text import duration, visible
from harness.run.executors.slurm.queue import Beat, Header, Queue, called, queues
from harness.run.executors.slurm.scheduler import Job, jobs_of

_REFRESH = 2.0  # seconds
_SAMPLE = 200  # cells whose mean stands for those of which nothing is known
_ASK = 15  # looks at the folder for each question to the scheduler


@dataclass(frozen=True)
class State:
    """A queue at one time. `lost`: keys of cells whose host is no more; `left` is in seconds, None if it is unknown."""

    header: Header
    waiting: int
    running: tuple[tuple[str, Beat], ...]  # what the cell is called, and what its host says
    lost: tuple[str, ...]
    ended: dict[str, int]  # status -> cells
    hosts: int  # at work
    left: float | None

    @property
    def open(self) -> bool:
        """Whether there are cells without a result."""
        return bool(self.waiting or self.running or self.lost)


def state_of(queue: Queue) -> State:
    """The state of a queue now.

    Raises:
        OSError, ValueError: the queue is gone.
    """
    header, entries = queue.header, queue.entries
    waiting, claims, ended = queue.waiting(), queue.running(), queue.ended()
    lost = queue.lost(header.lost_after)
    beats = {beat.host: beat for beat in queue.beats()}
    held = {key: host for key, host in claims.items() if key not in lost and key in entries and host in beats}
    hosts = sum(not beat.left and beat.host not in lost.values() for beat in beats.values())
    typical = None
    if any(entries[key].expected is None for key in {*waiting, *claims} & set(entries)):
        seconds = [queue.result(key, status).seconds for key, status in list(ended.items())[:_SAMPLE]]
        typical = mean(seconds) if seconds else None

    def expected(key: str) -> float | None:
        known = entries[key].expected
        return typical if known is None else known

    lengths = {key: expected(key) for key in {*waiting, *held, *lost} & set(entries)}
    left = None
    if hosts > 0 and None not in lengths.values():
        rest = {key: length or 0.0 for key, length in lengths.items()}
        for key, host in held.items():
            rest[key] = max(rest[key] - beats[host].seconds, 0.0)
        left = max(sum(rest.values()) / hosts, *(rest[key] for key in held), 0.0)
    counts = {status: sum(each == status for each in ended.values()) for status in ("ok", "skipped", "failed")}
    running = [(entries[key].cell.label, beats[host]) for key, host in held.items()]
    missing = tuple(entries[key].cell.label for key in lost if key in entries)
    return State(header, len(waiting), tuple(sorted(running, key=_first)), missing, counts, hosts, left)


def _first(pair: tuple[str, Beat]) -> str:
    return pair[0]


def watch(results: Path, console: Console, *, once: bool) -> None:
    """Show the queues of a results folder, until all their cells have results or, with `once`, as they are now.

    Raises:
        UsageError: there is none.
    """
    found = queues(results)
    if not found:
        raise UsageError(f"no cells were submitted to results folder {results}; see bench --executor slurm")
    if once or not console.is_terminal:
        console.print(_shown([(state_of(queue), jobs_of(queue.header)) for queue in found]))
        return
    jobs: dict[str, list[Job] | None] = {}
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        for look in range(10**9):
            states = []
            if look % _ASK == 0:  # there may be a new one
                found = queues(results)
            for queue in found:
                with suppress(OSError, ValueError):  # all has ended, and a driver has removed it
                    states.append(state_of(queue))
            for state in states:
                if look % _ASK == 0 or state.header.name not in jobs:
                    jobs[state.header.name] = jobs_of(state.header)
            live.update(_shown([(state, jobs[state.header.name]) for state in states]), refresh=True)
            if not any(state.open for state in states):
                return
            time.sleep(_REFRESH)


def _shown(states: Sequence[tuple[State, list[Job] | None]]) -> Group:
    parts: list[Text | Table] = []
    for state, jobs in states:
        parts.append(Text(sentence(state, jobs)))
        if state.running or state.lost:
            table = Table("cell", "host", "doing", "for", box=None, header_style="dim")
            for label, beat in state.running:
                doing = f"{beat.text} {beat.fraction:.0%}" if beat.text else "starts"
                cells = label, f"job {beat.job} on {beat.node}", doing, duration(beat.seconds)
                table.add_row(*(escape(visible(cell)) for cell in cells))
            for label in state.lost:
                table.add_row(escape(visible(label)), "lost", "waits for another host", "")
            parts.append(table)
    return Group(*parts)


def sentence(state: State, jobs: list[Job] | None) -> str:
    """How far a queue is. `jobs`: what the scheduler says, None if it was not asked or does not answer."""
    counts = [
        f"{state.waiting + len(state.lost)} waiting",
        f"{len(state.running)} running",
        f"{state.ended['ok']} done",
    ]
    counts += [f"{state.ended[status]} {status}" for status in ("skipped", "failed") if state.ended[status]]
    text = f"{called(state.header)}: {', '.join(counts)}"
    if not state.open:
        return f"{text}; all cells have ended: the command that submitted them makes the tables"
    text += f"; {state.hosts} of {state.header.hosts} hosts at work"
    if jobs is not None and all(job.over for job in jobs):
        return f"{text}; its jobs are over: the command that submitted them goes on with what is left"
    if state.left is not None:
        return f"{text}, about {duration(state.left)} left"
    reasons = sorted({job.reason or job.state for job in jobs or () if job.state == "PENDING"})
    if not state.hosts and reasons:
        return f"{text}; Slurm says {', '.join(reasons)}"
    return f"{text}; no cell like these was measured before, so the time that is left is not known"
