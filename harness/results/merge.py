"""Brings the records of several folders together, by copying files. Same cell, other numbers: both are kept and shown.

A conflict's other side lies in `conflicts/` below the target, a folder per side, where the report finds it. What is
known of exported cells comes along in the same way; of that, the report shows the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.api.errors import UsageError
from harness.io.canonical import digest
from harness.io.exit_codes import CONTRADICTION, LEFT_OUT, NOTHING_MEASURED, OK
from harness.io.files import is_folder, is_there, names_in, prepare_folder, read_regular, reason, write_atomically
from harness.io.text import visible
from harness.results.exported import FOLDER as EXPORTED
from harness.results.exported import Exported, keep_exported, read_exported
from harness.results.origin import origin, result
from harness.results.record import Record
from harness.results.store import Conflict, Store

_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclass(frozen=True)
class ExportConflict:
    """Two exports of one cell that do not say the same: the folder's own, and the other one, which is in `folder`."""

    kept: Exported
    other: Exported
    folder: Path


@dataclass
class Merged:
    """What a merge did: numbers of records and exports, and the conflicts that it found."""

    copied: int = 0
    same: int = 0
    better: int = 0  # measured ones that took the place of failed or incomplete ones
    conflicts: list[Conflict] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # a sentence per file of the sources that cannot be used
    exports: int = 0  # copied
    same_exports: int = 0
    export_conflicts: list[ExportConflict] = field(default_factory=list)


def merge(sources: Sequence[Path], target: Path) -> Merged:
    """Copy what `sources` have into `target`. Nothing that was measured is overwritten; records that cannot be used,
    since they are damaged, contradict themselves or have lost their outcomes, stay where they are.

    Raises:
        UsageError: a source is not a folder or is the target, a folder cannot be read, or the target cannot be written.
    """
    stores = [_source(folder, target) for folder in sources]
    contents = [store.records() for store in stores]  # all is read before anything is written
    exports = [_exports(store) for store in stores]
    prepare_folder(target, "--into")
    into, done = Store(target), Merged()
    there = {record.cell.key: record for record in into.records()}
    exported = {one.key: one for folder, one in _exports(into) if folder == into.folder}
    try:
        for store, records, found in zip(stores, contents, exports, strict=True):
            for record in records:
                if store.complete(record):
                    _bring(record, store, there, into, done)
            for conflict in store.conflicts(records):
                kept = there.get(conflict.other.cell.key)
                if kept is None or not _agree(conflict.other, conflict.store, kept, into):
                    _set_aside(conflict.other, conflict.store, into)
            _bring_exports(found, store, exported, into, done)
            done.left_out += store.sentences()
            store.remember()
    except OSError as error:
        raise UsageError(f"cannot copy to {target} ({reason(error)}); what was copied before is kept") from None
    return done


def show(merged: Merged, target: Path, console: Console) -> int:
    """Say what was done and print both sides of every conflict; return the exit code.

    0: merged; 1: some records or exports contradict each other, perhaps since an earlier merge; 3: some cannot be used
    and were left where they are; 4: there was no record.
    """
    store = Store(target)
    records = store.records()
    conflicts = store.conflicts(records)
    export_conflicts = _export_conflicts(store)
    for conflict in merged.conflicts:
        console.print(
            visible(f"CONFLICT {conflict.other.cell.suite} {conflict.other.cell.label}"), style="red", **_PLAIN
        )
        for side, record in ((target, conflict.kept), (conflict.store.folder, conflict.other)):
            if record is not None:
                origins = ", ".join(f"{name} {value}" for name, value in origin(record.provenance).items())
                console.print(f"    {side}: {result(record)} ({origins})", **_PLAIN)
    for each in merged.export_conflicts:
        text = f"CONFLICT exported {each.other.cell.suite} {each.other.cell.label}"
        console.print(visible(text), style="red", **_PLAIN)
        for side, one in ((target, each.kept), (each.folder, each.other)):
            console.print(visible(f"    {side / EXPORTED}: {_said(one)}"), **_PLAIN)
    left_out = [*merged.left_out, *store.sentences()]
    for text in left_out:
        console.print(f"LEFT OUT {text}", style="yellow", **_PLAIN)
    text = f"{merged.copied} records copied to {target}, {merged.same} were there already"
    text += f", {merged.better} took the place of failed or incomplete ones" * bool(merged.better)
    console.print(f"{text}, {len(merged.conflicts)} contradict what was there.", **_PLAIN)
    if merged.exports or merged.same_exports or merged.export_conflicts:
        text = f"{merged.exports} exports copied to {target / EXPORTED}, {merged.same_exports} were there already"
        console.print(f"{text}, {len(merged.export_conflicts)} contradict what was there.", **_PLAIN)
    if conflicts:
        number = len({conflict.other.cell.key for conflict in conflicts})
        text = f"Of {number} cells {target} now has records that contradict each other; its report shows them."
        console.print(text, style="yellow", **_PLAIN)
    if export_conflicts:
        number = len({conflict.other.key for conflict in export_conflicts})
        text = f"Of {number} cells {target} now has exports that contradict each other; its report shows those in "
        text += f"{target / EXPORTED}, the others are in {store.conflict_folder}."
        console.print(text, style="yellow", **_PLAIN)
    if conflicts or export_conflicts:
        return CONTRADICTION
    if left_out:
        return LEFT_OUT
    return OK if records else NOTHING_MEASURED


def _source(folder: Path, target: Path) -> Store:
    if not is_folder(folder):
        raise UsageError(f"there is no results folder {folder}; give folders that hold records")
    if folder.resolve() == target.resolve():
        raise UsageError(f"{folder} is a source and the target; leave it out, what is there stays")
    return Store(folder)


def _bring(record: Record, store: Store, there: dict[str, Record], into: Store, done: Merged) -> None:
    old = there.get(record.cell.key)
    if old is not None and (not _counts(record, store) or _agree(record, store, old, into)):
        done.same += 1
    elif old is None or not _counts(old, into):
        done.better += (replaced := old is not None or is_there(into.folder / f"{record.key}.json"))
        done.copied += not replaced
        for key in {record.key, old.key} if old is not None else {record.key}:
            into.make_room(key)
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
        content = read_regular(path)
        write_atomically(folder / path.name, partial(_fill, content))


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _exports(store: Store) -> list[tuple[Path, Exported]]:
    """Exports of a folder, each with where it is: the folder itself, or a side of its conflicts. Those that cannot be
    used become problems of the store.
    """
    sides = (store.conflict_folder / name for name in names_in(store.conflict_folder))
    found = []
    for folder in (store.folder, *sides):
        exports, problems = read_exported(folder)
        store.problems |= problems
        found += [(folder, one) for one in exports]
    return found


def _export_conflicts(store: Store) -> list[ExportConflict]:
    """Exports that were set aside since they are not the same as those of the folder."""
    found = _exports(store)
    own = {one.key: one for folder, one in found if folder == store.folder}
    aside = [(folder, one) for folder, one in found if folder != store.folder]
    return [
        ExportConflict(own[one.key], one, folder)
        for folder, one in aside
        if one.key in own and not _same(own[one.key], one)
    ]


def _same(one: Exported, other: Exported) -> bool:
    """Whether two exports of a cell say the same of it: times, machines, versions and dates may differ, and with the
    machine the last digits of a difference.
    """
    return bool(_measured(one) == _measured(other))


def _measured(one: Exported) -> Any:
    return one.metrics, one.float_metrics, [(each.runtime, each.metrics, each.verdict) for each in one.runtimes]


def _bring_exports(
    found: Sequence[tuple[Path, Exported]], store: Store, there: dict[str, Exported], into: Store, done: Merged
) -> None:
    for folder, one in found:
        kept, own, name = there.get(one.key), folder == store.folder, f"{one.key}.json"
        path = into.folder / EXPORTED / name
        if kept is not None and _same(kept, one):
            done.same_exports += own
        elif own and kept is None:
            if is_there(path):  # and cannot be used
                into.set_apart([path])
            keep_exported(one, path)
            into.problems.pop(path, None)
            there[one.key] = one
            done.exports += 1
        else:  # another one is there; or it was set aside before
            side = into.conflict_folder / digest(one.model_dump(mode="json"))[:12]
            keep_exported(one, side / EXPORTED / name)
            if own and kept is not None:
                done.export_conflicts.append(ExportConflict(kept, one, side))


def _said(one: Exported) -> str:
    """What runtimes make of an export, and when and on what that was found."""
    figures = [
        f"{each.runtime} {name} {value:.4f}" for each in one.runtimes for name, value in sorted(each.metrics.items())
    ]
    made = f"made {one.made} on {one.processor.get('processor', 'an unknown processor')}"
    return f"{', '.join(figures) or 'no runtime'} ({made})"
