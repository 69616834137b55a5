"""The results folder: one JSON document per cell, written atomically, with sidecars. Knows nothing of running."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.errors import DAMAGED_ARRAYS, UsageError
from harness.record import SCHEMA_VERSION, Record
from harness.upgrade import UnknownVersion, upgrade

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_RECORD_NAME = re.compile(r"[0-9a-f]{64}\.json")
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`."""
    _write_together([(path, write)])


def _write_together(files: Sequence[tuple[Path, Callable[[Path], object]]]) -> None:
    """The same with several files. The last one, which says that all are there, is away while the others change."""
    temporaries = [path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp") for path, _ in files]
    try:
        for temporary, (_, write) in zip(temporaries, files, strict=True):
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if len(files) > 1:  # all is written: a full disk changes nothing
            files[-1][0].unlink(missing_ok=True)
        for temporary, (path, _) in zip(temporaries, files, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing_report(folder: Path) -> Iterator[None]:
    """A report's files are being written to `folder`, from records that stay as they are.

    Raises:
        UsageError: instead of the OSError if one of them cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write the report in {folder} ({error.strerror or error}); all records are kept: make room there, "
            "then run the command again"
        ) from None


def prepare_folder(folder: Path, option: str) -> None:
    """Create `folder`, check that it can be written and remove what killed runs left half-written.

    Raises:
        UsageError: the folder cannot be created or written; the message names the `option` that changes it.
    """
    probe = folder / f".probe.{_host()}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to folder {folder} ({error.strerror}); choose another with {option}") from None
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        # A live process, or one on another machine that shares the folder, may still be writing.
        if match and match["host"] == _host() and not _alive(int(match["pid"])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Store:
    """Records of one folder. Two folders are merged by copying their files together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def records(self) -> list[Record]:
        """All records, in order of their keys.

        Versions until 0.1 counted brackets in a method's name as part of a cell's key; their records keep the key that
        they have, `record.cell.key` is that of today. One whose cell has a record of today is left out.

        Raises:
            UsageError: a record file is truncated or invalid; nothing is deleted.
        """
        found = list(self._read_all())
        present = {record.key for record in found}
        return [record for record in found if record.key == record.cell.key or record.cell.key not in present]

    def _read_all(self) -> Iterator[Record]:
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if _RECORD_NAME.fullmatch(path.name):
                    yield _read(path)

    def save(
        self,
        record: Record,
        outcomes: pd.DataFrame | None = None,
        images: np.ndarray | None = None,
        snapshots: Mapping[int, np.ndarray] | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the record and its sidecars, all or none: a record always has the sidecars that it was saved with."""
        files: list[tuple[Path, Callable[[Path], object]]] = []
        if outcomes is not None:
            files.append((self._outcomes(record.key), lambda path: outcomes.to_parquet(path, index=False)))
        if images is not None:
            files.append((self._images(record.key), _arrays({"images": images})))
        if snapshots:
            steps = {str(step): part for step, part in snapshots.items()}
            files.append((self._snapshots(record.key), _arrays(steps)))
        if pictures:
            files.append((self._pictures(record.key), _arrays(pictures)))
        text = record.model_dump_json(indent=1) + "\n"
        _write_together([*files, (self._record(record.key), lambda path: path.write_text(text, encoding="utf-8"))])

    def has_result(self, key: str) -> bool:
        """Whether the cell's record is there now, ok and complete."""
        path = self._record(key)
        try:
            record = _read(path) if path.exists() else None
        except UsageError:
            return False
        return record is not None and record.status == "ok" and self.complete(record)

    def files(self, key: str) -> list[Path]:
        """The files that there are of a cell: sidecars first and the record last, the order in which to copy them."""
        sidecars = (self._outcomes(key), self._images(key), self._snapshots(key), self._pictures(key))
        return [path for path in (*sidecars, self._record(key)) if path.exists()]

    @property
    def conflict_folder(self) -> Path:
        """Where `merge` puts records that contradict those of this folder, a folder a side."""
        return self.folder / "conflicts"

    def conflicts(self) -> list[Conflict]:
        """Records that were set aside since they contradict those of this folder, in order of their keys. One that
        says what this folder's says by now is none.

        Raises:
            UsageError: a record cannot be read.
        """
        if not self.conflict_folder.is_dir():
            return []
        here = {record.cell.key: record for record in self.records()}
        sides = [Store(path) for path in sorted(self.conflict_folder.iterdir()) if path.is_dir()]
        found = [
            Conflict(kept, record, side)
            for side in sides
            for record in side.records()
            if (kept := here.get(record.cell.key)) is None or not self.agrees(kept, record, side)
        ]
        return sorted(found, key=lambda conflict: conflict.other.key)

    def agrees(self, own: Record, other: Record, store: Store) -> bool:
        """Whether the record `other` of `store` says the same of its cell as `own` does; durations, machines and dates
        may differ. One whose outcomes are missing says nothing.

        Raises:
            UsageError: outcomes cannot be read.
        """
        if (own.status, own.metrics) != (other.status, other.metrics):
            return False
        if not (self.complete(own) and store.complete(other)):
            return False
        return own.status != "ok" or self.outcomes(own.key).equals(store.outcomes(other.key))

    def complete(self, record: Record) -> bool:
        """Whether the outcomes that belong to the record are there and not cut short."""
        if record.status != "ok":
            return True
        try:
            with self._outcomes(record.key).open("rb") as file:
                file.seek(-4, os.SEEK_END)
                return file.read() == b"PAR1"
        except OSError:
            return False

    def outcomes(self, key: str) -> pd.DataFrame:
        """Outcome of every evaluation image, in data order.

        Raises:
            UsageError: the sidecar is missing or cannot be read.
        """
        import pandas as pd

        path = self._outcomes(key)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"outcomes {path} cannot be read ({reason}); remove that file, then run the same bench "
                "command again to measure the cell anew"
            ) from None

    def images(self, key: str) -> np.ndarray | None:
        """Kept calibration images, (n, height, width, channels) uint8; None also if the file is damaged: no number
        depends on them.
        """
        return _read_arrays(self._images(key)).get("images")

    def snapshots(self, key: str) -> dict[int, np.ndarray]:
        """Optimisation step -> the first images as they were after it, in the form of `images`; empty if there are none
        or the file is damaged.
        """
        return {int(step): images for step, images in _read_arrays(self._snapshots(key)).items() if step.isdecimal()}

    def pictures(self, key: str) -> dict[str, np.ndarray]:
        """What was drawn on the first evaluation images, see `Evaluation`; empty if nothing was, or it is damaged."""
        return _read_arrays(self._pictures(key))

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _outcomes(self, key: str) -> Path:
        return self.folder / f"{key}.parquet"

    def _images(self, key: str) -> Path:
        return self.folder / f"{key}.images.npz"

    def _snapshots(self, key: str) -> Path:
        return self.folder / f"{key}.snapshots.npz"

    def _pictures(self, key: str) -> Path:
        return self.folder / f"{key}.pictures.npz"


@dataclass(frozen=True)
class Conflict:
    """Two records of one cell that contradict each other: the folder's own (None if it was removed since), and the
    other one, which is in `store`.
    """

    kept: Record | None
    other: Record
    store: Store


def _arrays(arrays: Mapping[str, np.ndarray]) -> Callable[[Path], object]:
    """Writes `arrays` to the file that it is given."""
    import numpy as np

    def write(path: Path) -> None:
        with path.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # none is named allow_pickle

    return write


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    try:
        with np.load(path) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except DAMAGED_ARRAYS:
        return {}


def _read(path: Path) -> Record:
    advice = "nothing was deleted; remove or repair the file, a removed cell is measured again"
    try:
        text = path.read_text(encoding="utf-8")
        # Only a document that pydantic would take for a present one goes to it as it is; upgrading needs a parsed one.
        document = json.loads(text)
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            text = json.dumps(upgrade(document))
        record = Record.model_validate_json(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"record {path} cannot be read (Invalid JSON: {error}); {advice}") from None
    except UnknownVersion as error:
        raise UsageError(f"record {path} cannot be read ({error}); {advice}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise UsageError(f"record {path} cannot be read ({problem}); {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"record {path} cannot be read ({error}); {advice}") from None
    if path.stem != record.key or record.key not in (record.cell.key, record.cell.labelled_key):
        raise UsageError(f"record {path} does not hold the cell that its name says; {advice}")
    return record
