"""What hosts on other machines must have in common with the one that plans, so that numbers fit into one table."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.identity.code import Code
from harness.io.files import is_folder, prepare_folder, read_regular, written
from harness.results.provenance import told_variables
from harness.results.record import Notice
from harness.run.runner import Measured, Settings

LOST = "HostLost"
_WORTH = 60.0  # seconds of work for which it is worth starting a host
SHARED = "shared"  # the domain of hosts that see the folder of images of the machine that plans
_GIVEN = "CUDA_VISIBLE_DEVICES"  # a host's own: what it was given of the machine
_MOST = 64  # bytes of a mark


@dataclass(frozen=True)
class Mark:
    """A file in a folder; who finds it with the same text sees the same folder."""

    path: Path
    text: str

    @property
    def is_seen(self) -> bool:
        """Whether this machine sees it."""
        try:
            return read_regular(self.path, _MOST) == self.text.encode()
        except OSError:
            return False


@contextmanager
def marked(folder: Path) -> Iterator[Mark]:
    """A mark in `folder` as long as the block runs.

    Raises:
        UsageError: the folder cannot be written.
    """
    prepare_folder(folder, "--cache")
    # Under a temporary name: what a killed run leaves is removed by the next.
    with written([folder / "seen-by-hosts"]) as (path,):
        mark = Mark(path, secrets.token_hex(16))
        path.write_text(mark.text)
        yield mark


@dataclass(frozen=True)
class Facts:
    """What a host says of itself. `node` tells apart the machines of a cluster, `codes` are those behind the cells that
    it was asked about, `processor` is what computes there; `fault` is what keeps it from measuring, if anything does.
    """

    name: str
    node: str
    codes: tuple[Code, ...] = ()
    processor: Mapping[str, str] | None = None
    shares_images: bool = False
    fault: str = ""

    @property
    def domain(self) -> str:
        """The same for all hosts that see each other's images."""
        return SHARED if self.shares_images else self.node


def one_of_each(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Cells that have among them all the code that `cells` are measured by."""
    return tuple({(cell.task, cell.method): cell for cell in cells}.values())


def lack(settings: Settings) -> str:
    """What this machine lacks that cells need; empty if nothing."""
    root = settings.data_root
    return f"it has no folder {root} (--data-root)" if root is not None and not is_folder(root) else ""


def look(settings: Settings, cells: Sequence[Cell], mark: Mark, node: str) -> Facts:
    """What can be said of this machine without measuring anything; `processor` is left to whoever starts a worker."""
    name = socket.gethostname()
    fault = lack(settings)
    if fault:
        return Facts(name, node, fault=fault)
    try:
        codes = tuple(code_for(settings.catalog, cell) for cell in cells)
        seen = mark.is_seen
        if not seen:
            prepare_folder(settings.cache, "--cache")
    except UsageError as error:
        return Facts(name, node, fault=str(error))
    return Facts(name, node, codes, shares_images=seen)


def objection(facts: Facts, codes: Sequence[Code]) -> str:
    """Why a host's numbers would not be those of the machine that plans, whose code is `codes`; empty if they are."""
    if facts.fault:
        return facts.fault
    for mine, theirs in zip(codes, facts.codes, strict=True):
        if theirs.fingerprint != mine.fingerprint:
            which = f"fingerprint {theirs.fingerprint[:8]} against {mine.fingerprint[:8]}"
            return f"it has other code than this machine ({which}); install the same on both"
        here, there = dict(mine.versions), dict(theirs.versions)
        for package in sorted({*here, *there}):
            if here.get(package) != there.get(package):
                which = f"{package} {there.get(package, 'is not installed')}, here {here.get(package, 'is not')}"
                return f"it has other packages than this machine ({which}); install the same on both"
    return ""


def worth(seconds: Iterable[float | None]) -> int | None:
    """How many hosts it is worth starting for cells that may take so long; None where not all of that is known."""
    total = 0.0
    for each in seconds:
        if each is None:
            return None
        total += each
    return max(1, math.ceil(total / _WORTH))


def with_losses(measured: Measured, losses: Iterable[str]) -> Measured:
    """A result as it is, with a warning for each time that its host was lost."""
    found = [Notice(category=LOST, message=loss, where="", count=1) for loss in losses]
    if not found:
        return measured
    record = measured.record
    return replace(measured, record=record.model_copy(update={"warnings": [*(record.warnings or ()), *found]}))


def machine(processor: Mapping[str, str]) -> str:
    """What computes, in words: a GPU by its name, or a CPU with its instructions."""
    return processor.get("gpu") or " with ".join(v for k, v in sorted(processor.items(), reverse=True) if k != "device")


def adopt(variables: Mapping[str, str], environment: MutableMapping[str, str] | None = None) -> None:
    """Take over the variables that choose how numbers are rounded, and give up those of this machine.

    Ray, for one, sets the number of threads of what it starts.
    """
    environment = os.environ if environment is None else environment
    for name in told_variables(environment):
        if name != _GIVEN:
            del environment[name]
    environment.update({name: value for name, value in variables.items() if name != _GIVEN})


def enter(folder: Path) -> None:
    """Work in the same folder as the machine that plans, if there is one: names of files may be relative."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
