"""The results folder: one JSON document per cell, written atomically, with sidecars. Knows nothing of running.

Nothing in the folder is believed unseen: a record that cannot be read, contradicts itself or has lost its outcomes is
left out, said in a sentence (`Store.problems`), and measured again; it is never deleted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from harness.api.errors import UsageError
from harness.identity.code import code_of
from harness.io.files import flush, is_there, names_in, read_regular, reason, written
from harness.io.remembered import Findings
from harness.io.text import visible
from harness.results import sidecars
from harness.results.exported import FOLDER as EXPORTED
from harness.results.record import SCHEMA_VERSION, Record
from harness.results.sidecars import IMAGES, OUTCOMES, PICTURES, SNAPSHOTS, SUFFIXES, Damaged
from harness.results.upgrade import UnknownVersion, upgrade
from harness.results.verify import agrees, checker, contradiction, flaw, resampling_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

T = TypeVar("T")
_RECORD_NAME = re.compile(r"([0-9a-f]{64})\.json")
LISTED = 20  # problems that are said one by one
_WORTH_KEEPING = 100  # outcomes, of which reading and checking take a tenth of a second


class _Contradiction(Damaged):
    """Outcomes that say otherwise than their record. The message follows the record's name."""


class Store:
    """Records of one folder. Two folders are merged by copying their files together.

    `problems` has a reason for every file that could not be used, of those that were looked at since `records` was last
    called. What was read is remembered under a hash of its bytes, so that reading a folder again costs little.
    """

    def __init__(self, folder: Path, resampling: Callable[[str], str | None] = resampling_of) -> None:
        self.folder = folder
        self.problems: dict[Path, str] = {}
        self._resampling_of = resampling
        self._resampling: dict[str, tuple[str | None, str]] = {}  # by task
        self._records: dict[
            str, tuple[bytes, Record | str]
        ] = {}  # by key: hash of the bytes; a text says what is wrong
        self._outcomes: dict[str, tuple[bytes, tuple[Path, str] | None]] = {}  # likewise, of both files together
        self._checks: dict[str, str] | None = None  # hashes of what earlier runs found to be complete, by key

    def records(self) -> list[Record]:
        """All records that agree with themselves, in order of their keys. Whether their outcomes agree as well is
        for `complete` to decide.

        Versions until 0.1 counted brackets in a method's name as part of a cell's key; their records keep the key that
        they have, `record.cell.key` is that of today. One whose cell has a record of today is left out.

        Raises:
            UsageError: the folder cannot be read.
        """
        self.problems.clear()
        matches = [match for name in names_in(self.folder) if (match := _RECORD_NAME.fullmatch(name))]
        found = [record for match in matches if (record := self.record(match[1])) is not None]
        present = {record.key for record in found}
        return [record for record in found if record.key == record.cell.key or record.cell.key not in present]

    def record(self, key: str) -> Record | None:
        """The record of a cell; None if there is none that can be used."""
        path = self._path(key)
        try:
            content = read_regular(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._problem(path, f"cannot be read ({reason(error)})")
            return None
        digest = hashlib.sha256(content).digest()
        known, found = self._records.get(key, (b"", ""))
        if known != digest:
            try:
                found = _parsed(content, key)
            except ValueError as error:
                found = str(error)
            self._records[key] = digest, found
        if isinstance(found, str):
            self._problem(path, found)
            return None
        return found

    def _problem(self, path: Path, text: str) -> None:
        self.problems[path] = text

    def remark(self, key: str, text: str) -> None:
        """Tell of something in a record, in words that follow its name, that is left out of what is made of it."""
        self._problem(self._path(key), text)

    def sentences(self) -> list[str]:
        """What to tell of `problems`, a sentence per file."""
        named = [
            f"{_called(path)} {visible(f'{path} {text}')}; it is left out, nothing was deleted"
            for path, text in sorted(self.problems.items())
        ]
        more = len(named) - LISTED
        return [*named[:LISTED], f"{more} more files in {self.folder} are left out"] if more > 0 else named

    def save(
        self,
        record: Record,
        outcomes: pd.DataFrame | None = None,
        images: np.ndarray | None = None,
        snapshots: Mapping[int, np.ndarray] | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> Record:
        """Write the record and its sidecars, all or none; sidecars of an earlier record of the cell are removed.

        The record says what its sidecars are. So whoever reads while several processes save a cell, or a copy of the
        folder that was cut short, finds files that belong together or else none.

        Returns:
            The record as it was saved.
        """
        arrays = {
            IMAGES: {} if images is None else {"images": images},
            SNAPSHOTS: {str(step): part for step, part in (snapshots or {}).items()},
            PICTURES: dict(pictures or {}),
        }
        writers = {kind: sidecars.array_writer(named) for kind, named in arrays.items() if named}
        shapes = {kind: {name: part.shape for name, part in named.items()} for kind, named in arrays.items()}
        if outcomes is not None:
            writers = {OUTCOMES: sidecars.table_writer(outcomes), **writers}
            shapes[OUTCOMES] = {str(name): outcomes[name].shape for name in outcomes}
        paths = [*(self._path(record.key, kind) for kind in writers), self._path(record.key)]
        with written(paths) as temporaries:
            said = {}
            for temporary, (kind, write) in zip(temporaries, writers.items(), strict=False):
                write(temporary)
                flush(temporary)
                said[kind] = sidecars.described(temporary.read_bytes(), shapes[kind])
            saved = record.model_copy(update={"sidecars": said})
            temporaries[-1].write_text(saved.model_dump_json(indent=1) + "\n", encoding="utf-8")
            flush(temporaries[-1])
            self.make_room(record.key)  # all is written: a full disk changes nothing
            for temporary, path in zip(temporaries, paths, strict=True):
                temporary.replace(path)
                self.problems.pop(path, None)
        return saved

    def make_room(self, key: str) -> None:
        """Remove what there is of a cell, the record first; to `unusable/` if its record cannot be used, since it may
        still be worth a look.
        """
        found = self.record(key)
        files = [self._path(key), *(self._path(key, kind) for kind in SUFFIXES)]
        if is_there(files[0]) and not (found is not None and self.complete(found)):
            self.set_apart(files)
        for path in files:
            path.unlink(missing_ok=True)

    def set_apart(self, files: Sequence[Path]) -> None:
        """Move files that cannot be used to `unusable/`."""
        folders = (self.folder / "unusable" / str(number) for number in count(1))
        place = next(folder for folder in folders if not is_there(folder / files[0].name))
        place.mkdir(parents=True, exist_ok=True)
        for path in files:
            with suppress(FileNotFoundError):  # not there, or another process that saves the cell has moved it
                path.replace(place / path.name)

    def has_result(self, key: str) -> bool:
        """Whether the cell's record is there now, ok and complete."""
        found = self.record(key)
        return found is not None and found.status == "ok" and self.complete(found)

    def files(self, key: str) -> list[Path]:
        """The files of a cell: its own sidecars first and the record last, the order in which to copy them."""
        found = self.record(key)
        own = SUFFIXES if found is None or found.sidecars is None else found.sidecars
        paths = [*(self._path(key, kind) for kind in SUFFIXES if kind in own), self._path(key)]
        return [path for path in paths if is_there(path)]

    @property
    def conflict_folder(self) -> Path:
        """Where `merge` puts records that contradict those of this folder, a folder per side."""
        return self.folder / "conflicts"

    def conflicts(self, own: Iterable[Record] | None = None) -> list[Conflict]:
        """Records that were set aside since they contradict those of this folder, in order of their keys. Left out
        are those that agree with the folder's present records, and those that cannot be used.

        Args:
            own: This folder's records, if they are at hand.

        Raises:
            UsageError: a folder cannot be read.
        """
        sides = [Store(self.conflict_folder / name, self._resampling_of) for name in names_in(self.conflict_folder)]
        if not sides:
            return []
        here = {record.cell.key: record for record in (self.records() if own is None else own)}
        found = []
        for side in sides:
            for record in side.records():
                kept = here.get(record.cell.key)
                if side.complete(record) and (kept is None or not self.agrees(kept, record, side)):
                    found.append(Conflict(kept, record, side))
            self.problems |= side.problems
        return sorted(found, key=lambda conflict: conflict.other.key)

    def agrees(self, own: Record, other: Record, store: Store) -> bool:
        """Whether the record `other` of `store` says the same of its cell as `own` does; durations, machines and dates
        may differ. One whose outcomes are missing says nothing.
        """
        if (own.status, own.metrics) != (other.status, other.metrics):
            return False
        if not (self.complete(own) and store.complete(other)):
            return False
        if own.status != "ok":
            return True
        ours, theirs = (sidecars.decisive(each) for each in (self.outcomes(own.key), store.outcomes(other.key)))
        return ours.equals(theirs)

    def complete(self, record: Record) -> bool:
        """Whether the outcomes that belong to the record are there, are its own, and give its metric."""
        if record.status != "ok":
            return True
        content = self._content(self._path(record.key, OUTCOMES))
        if content is None:
            return False
        digest = self._digest(record, content)
        known, problem = self._outcomes.get(record.key, (b"", None))
        if known != digest:
            trusted = self._checked().get(record.key) == digest.hex()
            self._judged(record, digest, lambda: None if trusted else self._check(record, content))
        elif problem is not None:
            self._problem(*problem)
        return self._outcomes[record.key][1] is None

    def outcomes_of(self, record: Record) -> NDArray[np.bool_] | pd.DataFrame | None:
        """Outcomes of a record that is ok, in data order: which images are right, or a table where there is more to
        say; None, and a problem, if they are not `complete`.
        """
        content = self._content(self._path(record.key, OUTCOMES))
        if content is None:
            return None
        digest, right = self._digest(record, content), self._right(record, content)
        if right is None:
            return self._judged(record, digest, lambda: self._table(record, content))
        self._outcomes[record.key] = digest, None
        return right

    def columns(self, record: Record, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Those columns of a record's outcomes that are there, in data order; none, and a problem, if damaged."""
        content = self._content(path := self._path(record.key, OUTCOMES))
        try:
            return {} if content is None else sidecars.columns_of(content, (record.sidecars or {}).get(OUTCOMES), names)
        except Damaged as error:
            self._problem(path, str(error))
            return {}

    def _judged(self, record: Record, digest: bytes, look: Callable[[], T]) -> T | None:
        """What `look` found in the outcomes of a record; None, and a problem, if they are damaged."""
        result, problem = None, None
        try:
            result = look()
        except Damaged as error:
            problem = self._blamed(record.key, error), str(error)
            self._problem(*problem)
        self._outcomes[record.key] = digest, problem
        return result

    def _digest(self, record: Record, content: bytes) -> bytes:
        """Hash of the outcomes' file and of all that decides whether they are the record's."""
        said = (record.metrics, record.primary_metric, record.cell.limit, self._metric(record.cell.task))
        whole = repr((said, record.sidecars and record.sidecars.get(OUTCOMES)))
        return hashlib.sha256(whole.encode() + content).digest()

    def remember(self) -> None:
        """Keep what `complete` has found, so that a later run need not read so many outcomes again."""
        good = {key: digest.hex() for key, (digest, found) in self._outcomes.items() if found is None}
        known = self._checked()
        if sum(known.get(key) != digest for key, digest in good.items()) >= _WORTH_KEEPING:
            there = {key: digest for key, digest in known.items() if is_there(self._path(key))}
            self._findings().keep(there | good)

    def _checked(self) -> dict[str, str]:
        if self._checks is None:
            self._checks = self._findings().load()
        return self._checks

    def _findings(self) -> Findings:
        return Findings("outcomes", self.folder, checker())

    def _blamed(self, key: str, error: Exception) -> Path:
        return self._path(key, None if isinstance(error, _Contradiction) else OUTCOMES)

    def outcomes(self, key: str) -> pd.DataFrame:
        """Outcome of every evaluation image, in data order.

        Raises:
            UsageError: there is no record, or its outcomes are missing, cannot be read, or contradict it.
        """
        path = self._path(key, OUTCOMES)
        record = self.record(key)
        try:
            if record is None:
                raise Damaged("has no record that can be used")
            return self._table(record, read_regular(path))
        except (OSError, Damaged) as error:
            text = f"cannot be read ({reason(error)})" if isinstance(error, OSError) else str(error)
            self._problem(path := self._blamed(key, error), text)
            advice = "run the same bench command again to measure the cell anew"
            raise UsageError(f"{_called(path)} {path} {text}; {advice}") from None

    def _check(self, record: Record, content: bytes) -> None:
        """Raise what `_table` does; where all goes well and images are right or wrong, without making the frame."""
        if self._right(record, content) is None:
            self._table(record, content)

    def _right(self, record: Record, content: bytes) -> NDArray[np.bool_] | None:
        """Which images are right; None where outcomes say more than that, or something may be wrong."""
        said = (record.sidecars or {}).get(OUTCOMES)
        if said is None or self._metric(record.cell.task)[0] != "":
            return None
        right = sidecars.right_of(content, said)
        return right if right is not None and agrees(record, int(right.sum()), len(right)) else None

    def _table(self, record: Record, content: bytes) -> pd.DataFrame:
        """Outcomes of a record from the bytes of their file; Damaged if they cannot be read or contradict it."""
        said = record.sidecars
        if said is not None and OUTCOMES not in said:
            raise Damaged("is not its record's, which was saved without outcomes")
        found = sidecars.table(content, said[OUTCOMES] if said is not None else None)
        if (wrong := contradiction(record, found, self._metric(record.cell.task)[0])) is not None:
            raise _Contradiction(wrong)
        return found

    def _metric(self, task: str) -> tuple[str | None, str]:
        """What computes the task's metric, and the fingerprint of its code."""
        if task not in self._resampling:
            function = self._resampling_of(task)
            self._resampling[task] = function, code_of(frozenset((function,))).fingerprint if function else ""
        return self._resampling[task]

    def images(self, key: str) -> np.ndarray | None:
        """Kept calibration images, (n, height, width, channels) uint8; None also if the file is not the record's or is
        damaged: no number depends on them.
        """
        return self._arrays(key, IMAGES).get("images")

    def snapshots(self, key: str) -> dict[int, np.ndarray]:
        """Optimisation step -> the first images as they were after it, in the form of `images`; empty if there are none
        or the file is damaged.
        """
        return sidecars.steps(self._arrays(key, SNAPSHOTS))

    def pictures(self, key: str) -> dict[str, np.ndarray]:
        """What was drawn on the first evaluation images, see `Evaluation`; empty if nothing was, or it is damaged."""
        return self._arrays(key, PICTURES)

    def _arrays(self, key: str, kind: str) -> dict[str, np.ndarray]:
        record = self.record(key)
        said = None if record is None else record.sidecars
        path = self._path(key, kind)
        if record is None or (said is not None and kind not in said) or (said is None and not is_there(path)):
            return {}
        content = self._content(path)
        try:
            return {} if content is None else sidecars.arrays(content, said[kind] if said is not None else None)
        except Damaged as error:
            self._problem(path, str(error))
            return {}

    def _content(self, path: Path) -> bytes | None:
        """The bytes of a sidecar; None, and a problem, if it cannot be read."""
        try:
            return read_regular(path)
        except OSError as error:
            self._problem(path, f"cannot be read ({reason(error)})")
            return None

    def _path(self, key: str, kind: str | None = None) -> Path:
        return self.folder / f"{key}{'.json' if kind is None else SUFFIXES[kind]}"


@dataclass(frozen=True)
class Conflict:
    """Two records of one cell that contradict each other: the folder's own (None if it was removed since), and the
    other one, which is in `store`.
    """

    kept: Record | None
    other: Record
    store: Store


def _called(path: Path) -> str:
    return "record" if path.suffix == ".json" and path.parent.name != EXPORTED else "file"


def _parsed(content: bytes, key: str) -> Record:
    """The record in the bytes of a file that is named after `key`.

    Raises:
        ValueError: it is not one, or has a flaw; the message says which, in words that follow its name.
    """
    try:
        document = pydantic_core.from_json(content, allow_inf_nan=False)
        if not isinstance(document, dict):
            raise UnknownVersion("it is not a record")
        if document.get("schema_version") != SCHEMA_VERSION:
            document = upgrade(document)
        record = Record.model_validate(document)
        wrong = flaw(record) if record.key == key else "does not hold the cell that its name says"
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"cannot be read ({problem})") from None
    except UnknownVersion as error:
        raise ValueError(f"cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read (Invalid JSON: {error})") from None
    if wrong is not None:
        raise ValueError(wrong)
    return record
