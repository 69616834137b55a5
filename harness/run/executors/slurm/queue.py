"""A queue of cells in a folder that several machines see. Knows nothing of Slurm and of how cells are measured.

Whoever renames a cell's token from `waiting/` to `running/` has the cell; a rename succeeds once, also on NFS. A host
writes its beat every few seconds; the cells of one that stopped can be taken over. All that is ever read was written
under another name first. A folder holds:

    queue.json              what is asked of all hosts (`Header`)
    cells.jsonl             the cells (`Entry`), which never change
    waiting/KEY             tokens: the losses of the cell so far
    running/KEY@HOST
    ended/KEY.STATUS.json   what came of a cell (`Ended`); its record is in the store
    hosts/HOST.json         beats (`Beat`)
    machine.json            the sort of machine of the first result
    jobs/                   scripts and logs of the jobs
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.io.files import is_gone, names_in, read_regular, write_atomically, written
from harness.results.record import Record, Status

FOLDER = "queue"  # in a results folder: one queue for each submission
MOST_LOSSES = 2  # hosts that a cell may be lost with; then it has failed
LOST_AFTER = 120.0  # seconds without a beat; machines' clocks may differ by some of them
_ENDED_NAME = re.compile(r"(?P<key>[0-9a-f]{64})\.(?P<status>\w+)\.json")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(_Part):
    """What holds for a whole queue: its name, the cluster and jobs that drain it, and when a host counts as lost."""

    name: str
    cluster: str
    jobs: tuple[str, ...] = ()
    hosts: int = 0  # that were asked for
    lost_after: float = LOST_AFTER  # seconds


class Entry(_Part):
    """A cell to measure, with what was known of it when it was submitted.

    `code` and `versions` are those that the submitter has; `expected` is in seconds; `images` names the synthetic
    images that it shares; `again`: it has a result that is to be replaced.
    """

    cell: Cell
    code: str
    versions: dict[str, str]
    expected: float | None = None
    images: str = ""
    again: bool = False


class Ended(_Part):
    """What came of a cell: seconds, and where. `record` only of a failure, which may not be in the store."""

    seconds: float
    node: str
    record: Record | None = None


class Beat(_Part):
    """What a host says of itself. `key` is the cell that it measures, `text` and `fraction` how far that is, `seconds`
    how long it has taken. `left`: the host has ended, and why.
    """

    host: str
    node: str
    job: str
    machine: str
    pid: int
    key: str = ""
    text: str = ""
    fraction: float = 0.0
    seconds: float = 0.0
    began: str = ""  # when the cell began, as records have it
    measured: int = 0
    left: str = ""
    refused: bool = False  # it left since it may not measure here


@dataclass(frozen=True)
class Claim:
    """A cell that a host has; `losses` says which hosts had it before and were lost."""

    key: str
    host: str
    losses: tuple[str, ...] = ()


class Queue:
    """The queue in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, Entry] | None = None

    @classmethod
    def make(cls, folder: Path, header: Header, entries: Iterable[Entry], losses: dict[str, tuple[str, ...]]) -> Queue:
        """A new queue in which all cells wait. `losses`: of cells that were in a queue before.

        Raises:
            OSError: it cannot be written.
        """
        queue = cls(folder)
        for name in ("waiting", "running", "ended", "hosts", "jobs"):
            (folder / name).mkdir(parents=True)
        entries = list(entries)
        text = "".join(entry.model_dump_json() + "\n" for entry in entries)
        _write(folder / "cells.jsonl", text)
        for entry in entries:
            (folder / "waiting" / entry.cell.key).write_text(json.dumps(losses.get(entry.cell.key, ())))
        queue.describe(header)
        return queue

    def describe(self, header: Header) -> None:
        """Write the header; a queue without one is not finished, and nobody looks at it."""
        _write(self.folder / "queue.json", header.model_dump_json())

    @property
    def header(self) -> Header:
        """The header.

        Raises:
            OSError, ValueError: there is none that can be read.
        """
        return Header.model_validate_json(read_regular(self.folder / "queue.json"))

    @property
    def entries(self) -> dict[str, Entry]:
        """All cells by key, in the order of the plan.

        Raises:
            OSError, ValueError: they cannot be read.
        """
        if self._entries is None:
            lines = read_regular(self.folder / "cells.jsonl").splitlines()
            found = [Entry.model_validate_json(line) for line in lines]
            self._entries = {entry.cell.key: entry for entry in found}
        return self._entries

    def waiting(self) -> list[str]:
        """Keys of the cells that no host has."""
        return names_in(self.folder / "waiting")

    def running(self) -> dict[str, str]:
        """Key -> host of the cells that a host has."""
        names = (name.partition("@") for name in names_in(self.folder / "running") if not name.startswith("."))
        return {key: host for key, _, host in names}

    def losses(self) -> dict[str, tuple[str, ...]]:
        """Key -> losses of the cells that wait, if they have any."""
        found = {}
        for key in self.waiting():
            token = self.folder / "waiting" / key
            with suppress(OSError, ValueError):
                if token.stat().st_size > len("[]"):
                    found[key] = tuple(json.loads(token.read_text()))
        return found

    def ended(self) -> dict[str, str]:
        """Key -> status of the cells that have a result."""
        matches = map(_ENDED_NAME.fullmatch, names_in(self.folder / "ended"))
        return {match["key"]: match["status"] for match in matches if match}

    def result(self, key: str, status: str) -> Ended:
        """What came of a cell."""
        return Ended.model_validate_json(read_regular(self._ended(key, status)))

    def claim(self, key: str, host: str) -> Claim | None:
        """Take a cell that waits; None if another host was faster."""
        return self._renamed(self.folder / "waiting" / key, key, host)

    def take_over(self, key: str, lost: str, host: str) -> Claim | None:
        """Take a cell from a host that is lost; None if another was faster."""
        return self._renamed(self._token(key, lost), key, host)

    def holds(self, claim: Claim) -> bool:
        """Whether the host still has the cell: one that did not beat for long may have lost it."""
        return self._token(claim.key, claim.host).exists()

    def give_back(self, claim: Claim, loss: str = "") -> None:
        """Let others take the cell; `loss` says how a host was lost with it, if one was."""
        token = self._token(claim.key, claim.host)
        if loss:
            _write(token, json.dumps([*claim.losses, loss]))
        with suppress(FileNotFoundError):  # it was taken over
            token.rename(self.folder / "waiting" / claim.key)

    def end(self, claim: Claim, status: Status, ended: Ended) -> None:
        """The cell has its result, which is in the store."""
        _write(self._ended(claim.key, status), ended.model_dump_json())
        self._token(claim.key, claim.host).unlink(missing_ok=True)

    def agree_on_machine(self, own: dict[str, str]) -> dict[str, str]:
        """The sort of machine that the first host to ask was on; `own` if this is the first."""
        path = self.folder / "machine.json"
        with written([path]) as (temporary,):
            temporary.write_text(json.dumps(own), encoding="utf-8")
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
        found: dict[str, str] = json.loads(read_regular(path))
        return found

    def beat(self, beat: Beat) -> None:
        """Say that a host lives, and what it does."""
        _write(self._beat(beat.host), beat.model_dump_json())

    def beats(self) -> list[Beat]:
        """What all hosts said last."""
        names = [name for name in names_in(self.folder / "hosts") if name.endswith(".json")]
        found = [self._read_beat(name.removesuffix(".json")) for name in names]
        return [beat for beat in found if beat is not None]

    def lost(self, lost_after: float) -> dict[str, str]:
        """Key -> host of cells whose host is no more."""
        running = self.running()
        if not running:
            return {}
        clock = self.folder / "hosts" / f".{host_name('clock')}"
        clock.write_text("")  # the time of whoever keeps the files, which this machine's clock may not agree with
        present = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
        lost = {host for host in set(running.values()) if self._is_lost(host, present, lost_after)}
        still = self.running() if lost else {}  # a host that has ended a cell since is not lost with it
        return {key: host for key, host in still.items() if host in lost}

    def _is_lost(self, host: str, present: float, lost_after: float) -> bool:
        beat = self._read_beat(host)
        if beat is None or beat.left:  # whoever takes a cell has beaten before
            return True
        if is_gone(beat.machine, beat.pid):
            return True
        with suppress(OSError), self._beat(host).open("rb") as file:  # opened, so that NFS asks its server
            return present - os.fstat(file.fileno()).st_mtime > lost_after
        return True

    def _renamed(self, token: Path, key: str, host: str) -> Claim | None:
        own = self._token(key, host)
        try:
            token.rename(own)
        except FileNotFoundError:
            # A server may have done what it says it could not, when it was asked twice.
            if not own.exists():
                return None
        try:
            losses = tuple(json.loads(own.read_text() or "[]"))
        except (OSError, ValueError):
            losses = ()
        return Claim(key, host, losses)

    def _token(self, key: str, host: str) -> Path:
        return self.folder / "running" / f"{key}@{host}"

    def _ended(self, key: str, status: str) -> Path:
        return self.folder / "ended" / f"{key}.{status}.json"

    def _beat(self, host: str) -> Path:
        return self.folder / "hosts" / f"{host}.json"

    def _read_beat(self, host: str) -> Beat | None:
        try:
            return Beat.model_validate_json(read_regular(self._beat(host)))
        except (OSError, ValidationError):
            return None


def queues(results: Path) -> list[Queue]:
    """The queues of a results folder, the oldest first.

    Raises:
        UsageError: the folder cannot be read.
    """
    found = []
    for name in names_in(results / FOLDER):
        queue = Queue(results / FOLDER / name)
        try:
            if queue.header and queue.entries:
                found.append(queue)
        except (OSError, ValueError):  # its driver was killed while it made it, or it is another version's
            continue
    return found


def called(header: Header) -> str:
    """The jobs of a queue, for sentences."""
    kind = "Slurm job" if header.cluster == "slurm" else "local job"
    ids = list(dict.fromkeys(job.partition("_")[0] for job in header.jobs))
    return f"{kind} {', '.join(ids) or header.name}"


def host_name(job: str) -> str:
    """A name for this process as a host."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{job}.{socket.gethostname()}.{os.getpid()}")


def check_shared(folder: Path) -> None:
    """Check that a queue that a host was sent to is there.

    Raises:
        UsageError: it is not.
    """
    if not (folder / "queue.json").exists():
        raise UsageError(f"{folder} is not there on {socket.gethostname()}; put results on a disk that all nodes share")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
