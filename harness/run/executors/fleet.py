"""Hosts on other machines, served by one thread: which of them take part, what each does, what becomes of lost ones."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.io.text import visible
from harness.results.record import Failure
from harness.run.executors.base import Watch
from harness.run.executors.remote import (
    LOST,
    Facts,
    Mark,
    machine,
    marked,
    objection,
    one_of_each,
    with_losses,
    worth,
)
from harness.run.runner import Measured, Settings, failed_record, now
from harness.run.work import Work

_PAUSE = 1.0  # seconds between two questions to a host how far it is
_RECOUNT = 10.0  # seconds after which a cluster may have other nodes
_TOGETHER = 15.0  # seconds that the first host waits for others, before the kind of machine is chosen
_STARTS = 3  # hosts that may fail to start, one after the other


class Lost(Exception):
    """A host is gone; the message says why, as far as that is known."""


class Cluster(Protocol):
    """What starts hosts. A ticket stands for an answer that is to come."""

    def room(self, without: Collection[str]) -> int:
        """How many hosts the nodes have room for if nobody else uses them, not counting nodes `without`."""

    def start(self, without: Collection[str]) -> Any:
        """A new `harness.run.executors.ray_host.Host`, on none of the nodes `without`, as soon as there is room."""

    def ask(self, host: Any, what: str, *arguments: object) -> Any:
        """Call a method of a host; returns a ticket."""

    def wait(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        """The tickets that are answered, as soon as there is one, at the latest after some seconds."""

    def answer(self, ticket: Any) -> Any:
        """What the method returned.

        Raises:
            Lost: the host is gone, or the method raised.
        """

    def stop(self, host: Any) -> None:
        """Kill a host with all that it started."""

    def lacks(self, without: Collection[str]) -> str:
        """Why no host starts, as the end of a sentence."""


@dataclass(eq=False)
class _Host:
    name: str
    handle: Any
    facts: Facts | None = None  # None until it has started
    placed: bool = False  # it runs, though perhaps its worker does not yet
    admitted: bool = False
    cell: Cell | None = None
    began: tuple[str, float] = ("", 0.0)  # with its cell
    asked: float | None = None  # when it was last asked how far it is; None while it has not answered

    @property
    def place(self) -> str:
        return self.name if self.facts is None else f"{self.facts.name} ({self.name})"


@dataclass
class Fleet:
    """Keeps up to `jobs` hosts of a cluster (None: as many as it has room for, and as are worth starting) at work.

    A lost host costs its own cell one more try on another; a cell that loses two hosts has failed. A host that would
    give other numbers is left out together with its node. All hosts compute on the same kind of machine, the one that
    most of those have that start together.

    Args:
        cluster: Where hosts start.
        settings: What cells are run with.
        jobs: Hosts at a time.
        wait: Seconds after which having no host is an error.
        say: Told what the user should know, in sentences.
    """

    cluster: Cluster
    settings: Settings
    jobs: int | None = None
    wait: float = math.inf
    say: Callable[[str], object] = field(default=lambda text: sys.stderr.write(visible(text) + "\n"))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._hosts: list[_Host] = []
        self._tickets: dict[Any, tuple[_Host, str]] = {}
        self._without: dict[str, str] = {}  # node -> why it is left out
        self._machine: tuple[tuple[str, str], ...] | None = None  # what all hosts compute on
        self._looked: float | None = None  # when the first host had started
        self._alone = self.clock()  # since when there is no host
        self._told = False
        self._failed: list[str] = []  # why the last hosts could not start
        self._losses: Counter[str] = Counter()  # by the cell's key
        self._where: dict[str, str] = {}  # key -> the host that was lost
        self._counted = -math.inf, 0
        self._numbers = 0

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """Measure the cells of `work`, as `harness.run.executors.base.Executor.map`.

        Raises:
            UsageError: no host starts, or none that would give the same numbers as this machine.
        """
        kinds = one_of_each(work.cells)
        codes = [code_for(self.settings.catalog, cell) for cell in kinds]
        self._alone = self.clock()
        with marked(self.settings.cache) as mark:
            try:
                while work.left:
                    self._grow(work, kinds, mark)
                    self._choose()
                    self._hand_out(work, watch)
                    self._poll()
                    self._check_alone()
                    yield from self._answers(work, watch, codes)
            finally:
                self.close()

    def close(self) -> None:
        """Kill all hosts."""
        while self._hosts:
            self._drop(self._hosts[-1])

    def _grow(self, work: Work, kinds: Sequence[Cell], mark: Mark) -> None:
        """As many hosts as are of use; those that are not, end."""
        running = sum(host.cell is not None for host in self._hosts)
        if work.left == running:
            for host in [host for host in self._hosts if host.cell is None]:
                self._drop(host, work)
        if len(self._failed) >= _STARTS:
            return
        for _ in range(min(self._most(work), work.left) - len(self._hosts)):
            self._numbers += 1
            host = _Host(f"host {self._numbers}", self.cluster.start(self._without))
            self._hosts.append(host)
            self._ask(host, "progress")
            self._ask(host, "look", kinds, mark)

    def _most(self, work: Work) -> int:
        if self.jobs is not None:
            return self.jobs
        when, room = self._counted
        if self.clock() - when >= _RECOUNT:
            room = self.cluster.room(self._without)
            most = worth(map(work.expected, work.cells))
            if most is not None:
                room = min(room, most)
            self._counted = self.clock(), room
        return max(1, room)

    def _choose(self) -> None:
        """Admit the hosts that compute on the same kind of machine as most."""
        looked = [host for host in self._hosts if host.facts is not None]
        if self._machine is None and looked:
            now_ = self.clock()
            self._looked = now_ if self._looked is None else self._looked
            if len(looked) < len(self._hosts) and now_ - self._looked < _TOGETHER:
                return
            self._machine = Counter(_machine(host) for host in looked).most_common(1)[0][0]
        for host in looked:
            if host.admitted:
                continue
            if _machine(host) == self._machine:
                host.admitted = True
                self._failed.clear()
            else:
                theirs, ours = machine(dict(_machine(host))), machine(dict(self._machine or ()))
                self._refuse(host, f"it computes on {theirs}, the others on {ours}, which may give other numbers")

    def _hand_out(self, work: Work, watch: Watch) -> None:
        for host in self._hosts:
            if host.admitted and host.cell is None and host.facts is not None:
                host.cell = work.take(host.name, host.facts.domain)
                if host.cell is not None:
                    host.began = now(), self.clock()
                    watch(host.cell, "", 0.0)
                    self._ask(host, "measure", host.cell)

    def _poll(self) -> None:
        """Ask each host how far it is, which also shows whether it is still there."""
        now_ = self.clock()
        for host in self._hosts:
            if host.admitted and host.asked is not None and now_ - host.asked >= _PAUSE:
                host.asked = None
                self._ask(host, "progress")

    def _check_alone(self) -> None:
        if any(host.admitted for host in self._hosts):
            self._alone, self._told = self.clock(), False
            return
        waited = self.clock() - self._alone
        why = self._why_none()
        if len(self._failed) >= _STARTS and not self._hosts:
            raise UsageError(f"no host can be started: {why}; what was measured before is kept")
        if self._without and not self.cluster.room(self._without) and self.cluster.room(()):
            raise UsageError(f"no machine of the cluster can take part: {'; '.join(self._without.values())}")
        if waited >= self.wait:
            raise UsageError(f"no host has started within {self.wait:g} seconds: {why}; --wait waits longer")
        if not self._told and not any(host.placed for host in self._hosts) and waited >= min(_TOGETHER, self.wait / 2):
            self._told = True
            self.say(f"Waiting for a host: {why}.")

    def _why_none(self) -> str:
        reasons = [*self._failed[-1:], *list(self._without.values())[-1:]]
        if not reasons and any(host.placed for host in self._hosts):
            return "there are hosts, but their workers have not started yet"
        return reasons[0] if reasons else self.cluster.lacks(self._without)

    def _answers(self, work: Work, watch: Watch, codes: Sequence[Any]) -> Iterator[Measured]:
        for ticket in self.cluster.wait(list(self._tickets), _PAUSE):
            host, what = self._tickets.pop(ticket, (None, ""))
            if host is None:  # dropped a moment ago
                continue
            try:
                answer = self.cluster.answer(ticket)
            except Lost as error:
                yield from self._lost(host, str(error), work)
                continue
            if what == "look":
                self._meet(host, answer, codes)
            elif what == "progress":
                host.placed, host.asked = True, self.clock()
                key, text, fraction = answer
                if host.cell is not None and host.cell.key == key:
                    watch(host.cell, text, fraction)
            else:
                cell, host.cell = host.cell, None
                assert cell is not None
                work.finished(cell)
                yield self._noted(answer, cell)

    def _meet(self, host: _Host, facts: Facts, codes: Sequence[Any]) -> None:
        host.facts = facts
        text = objection(facts, codes)
        if text:
            self._refuse(host, text)

    def _refuse(self, host: _Host, why: str) -> None:
        """Leave a host and its node out."""
        assert host.facts is not None
        self._drop(host)
        if host.facts.node not in self._without:
            self._without[host.facts.node] = f"{host.facts.name}: {why}"
            self._counted = -math.inf, 0
            self.say(f"Host {host.facts.name} is left out: {why}.")

    def _lost(self, host: _Host, why: str, work: Work) -> Iterator[Measured]:
        cell, (started, clock) = host.cell, host.began
        self._drop(host, work)
        if host.facts is None:
            self._failed.append(why)
            if len(self._failed) == _STARTS and self._hosts:
                self.say(f"No more hosts are started, since {_STARTS} could not: {why}.")
            return
        self.say(f"Lost {host.place}: {why}.")
        if cell is None:
            return
        self._losses[cell.key] += 1
        self._where[cell.key] = host.place
        if self._losses[cell.key] == 1:
            work.give_back(cell)
            return
        work.finished(cell)
        failure = Failure(type=LOST, message=f"its host was lost twice, the last time {host.place}: {why}")
        yield Measured(failed_record(self.settings, cell, failure, started, self.clock() - clock))

    def _noted(self, measured: Measured, cell: Cell) -> Measured:
        """A result as it is; of a cell that was begun twice it says so."""
        if cell.key not in self._where:
            return measured
        return with_losses(measured, [f"measured again after {self._where[cell.key]} was lost"])

    def _ask(self, host: _Host, what: str, *arguments: object) -> None:
        self._tickets[self.cluster.ask(host.handle, what, *arguments)] = host, what

    def _drop(self, host: _Host, work: Work | None = None) -> None:
        """Be rid of a host, and of what only it and its like could see."""
        self._hosts.remove(host)
        self._tickets = {ticket: asked for ticket, asked in self._tickets.items() if asked[0] is not host}
        self.cluster.stop(host.handle)
        if work is not None and host.facts is not None:
            domain = host.facts.domain
            if all(other.facts is None or other.facts.domain != domain for other in self._hosts):
                work.forget(domain)


def _machine(host: _Host) -> tuple[tuple[str, str], ...]:
    assert host.facts is not None
    return tuple(sorted((host.facts.processor or {}).items()))
