"""What an executor is: one call that maps cells to results as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

from harness.identity.cell import Cell
from harness.run.runner import Measured
from harness.run.work import Work

# Told which cell is running, what it is doing and how far it is (0 to 1); first of all when a cell begins.
Watch = Callable[[Cell, str, float], None]


@dataclass(frozen=True)
class Resources:
    """What a user says of where cells run and how many at a time. None or empty: as the executor thinks best.

    An executor names in `ExecutorInfo.accepts` what of this it understands; anything else is refused. A host is what
    measures one cell at a time.
    """

    timeout: float | None = None  # seconds after which a cell counts as failed
    jobs: int | None = None  # hosts at a time
    address: str | None = None  # of a cluster
    cpus: int | None = None  # of each host
    gpus: float | None = None  # of each host; below 1, hosts share one
    slurm: Mapping[str, str] = field(default_factory=dict)  # what Slurm is asked for: partition, time, ...
    detach: bool = False  # submit and end
    wait: float | None = None  # seconds after which having no host is an error

    @property
    def said(self) -> tuple[str, ...]:
        """Names of what the user says something of."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) not in (None, {}, False))


class Detached(Exception):
    """Cells were handed over and go on without this process; the message says what to do next."""


class Executor(Protocol):
    """Measures cells with `harness.run.runner.CellRunner`, wherever and however many at a time.

    Made by `ExecutorInfo.target`, called as `target(settings, resources)` with `harness.run.runner.Settings` and
    `Resources`.
    """

    def map(self, work: Work, watch: Watch) -> Iterator[Measured]:
        """The result of each cell of `work` once, as soon as it is there, in any order.

        `work` says which cell comes next; an executor with one host iterates over it. May be called again. Whatever
        goes wrong inside a cell is a failed record and not raised. Closing the iterator early need not stop anything;
        `close` does.

        Raises:
            KeyboardInterrupt: the user interrupted.
            Detached: with `Resources.detach`, once the cells are handed over.
        """

    def close(self) -> None:
        """Stop at once, also in the middle of a cell."""
