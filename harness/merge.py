"""Brings the records of several folders together, by copying files. Same cell, other numbers: both are kept and shown.

A conflict's other side lies in `conflicts/` below the target, a folder a side, where the report finds it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cell import digest
from harness.errors import UsageError
from harness.record import Record
from harness.report.conflicts import origin, result
from harness.store import Conflict, Store, prepare_folder, write_atomically
from harness.sweep import NOTHING_MEASURED, OK

CONTRADICTION = 1
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclass
class Merged:
    """What a merge did: numbers of records, and the conflicts that it found."""

    copied: int = 0
    same: int = 0
    better: int = 0  # measured ones that took the place of failed or incomplete ones
    conflicts: list[Conflict] = field(default_factory=list)


def merge(sources: Sequence[Path], target: Path) -> Merged:
    """Copy what `sources` have into `target`. Nothing that was measured is overwritten.

    Raises:
        UsageError: a source is no folder with records or is the target, a record cannot be read, or the target cannot
            be written.
    """
    stores = [_source(folder, target) for folder in sources]
    contents = [store.records() for store in stores]  # all is read before anything is written
    prepare_folder(target, "--into")
    into, done = Store(target), Merged()
    there = {record.cell.key: record for record in into.records()}
    try:
        for store, records in zip(stores, contents, strict=True):
            for record in records:
                _bring(record, store, there, into, done)
            for conflict in store.conflicts():
                kept = there.get(conflict.other.cell.key)
                if kept is None or not _agree(conflict.other, conflict.store, kept, into):
                    _set_aside(conflict.other, conflict.store, into)
    except OSError as error:
        raise UsageError(f"cannot copy to {target} ({error.strerror}); what was copied before is kept") from None
    return done


def show(merged: Merged, target: Path, console: Console) -> int:
    """Say what was done and print both sides of every conflict; return the exit code.

    0: merged; 1: some records contradict each other, perhaps since an earlier merge; 4: there was no record.
    """
    conflicts = Store(target).conflicts()
    for conflict in merged.conflicts:
        console.print(f"CONFLICT {conflict.other.cell.suite} {conflict.other.cell.label}", style="red", **_PLAIN)
        for side, record in ((target, conflict.kept), (conflict.store.folder, conflict.other)):
            if record is not None:
                origins = ", ".join(f"{name} {value}" for name, value in origin(record.provenance).items())
                console.print(f"    {side}: {result(record)} ({origins})", **_PLAIN)
    text = f"{merged.copied} records copied to {target}, {merged.same} were there already"
    text += f", {merged.better} took the place of failed or incomplete ones" * bool(merged.better)
    console.print(f"{text}, {len(merged.conflicts)} contradict what was there.", **_PLAIN)
    if conflicts:
        number = len({conflict.other.cell.key for conflict in conflicts})
        text = f"Of {number} cells {target} now has records that contradict each other; its report shows them."
        console.print(text, style="yellow", **_PLAIN)
        return CONTRADICTION
    return OK if Store(target).records() else NOTHING_MEASURED


def _source(folder: Path, target: Path) -> Store:
    if not folder.is_dir():
        raise UsageError(f"there is no results folder {folder}; give folders that hold records")
    if folder.resolve() == target.resolve():
        raise UsageError(f"{folder} is a source and the target; leave it out, what is there stays")
    return Store(folder)


def _bring(record: Record, store: Store, there: dict[str, Record], into: Store, done: Merged) -> None:
    old = there.get(record.cell.key)
    if old is not None and (not _counts(record, store) or _agree(record, store, old, into)):
        done.same += 1
    elif old is None or not _counts(old, into):
        done.better += old is not None
        done.copied += old is None
        if old is not None:
            for path in into.files(old.key):
                path.unlink()
        _copy(store, record.key, into.folder)
        there[record.cell.key] = record
    else:
        done.conflicts.append(Conflict(old, record, _set_aside(record, store, into)))


def _counts(record: Record, store: Store) -> bool:
    """Whether the record stands for something: a failed or incomplete one is measured again anyway."""
    return record.status != "failed" and store.complete(record)


def _agree(record: Record, store: Store, old: Record, into: Store) -> bool:
    return _counts(old, into) and into.agrees(old, record, store)


def _set_aside(record: Record, store: Store, into: Store) -> Store:
    """Copy a record to the conflicts of `into`; the same one twice has one place."""
    provenance = record.provenance.model_dump(mode="json")
    side = into.conflict_folder / digest([record.started, record.metrics, provenance])[:12]
    side.mkdir(parents=True, exist_ok=True)
    _copy(store, record.key, side)
    return Store(side)


def _copy(store: Store, key: str, folder: Path) -> None:
    for path in store.files(key):
        write_atomically(folder / path.name, partial(shutil.copyfile, path))
