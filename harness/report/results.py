"""What a report is made of: the records of a folder, as frames. Reads files in `load` only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from harness.api.errors import UsageError
from harness.api.plugins import PRESETS, import_target
from harness.catalog.catalog import Catalog
from harness.report import stats
from harness.report.diagnostics import odd
from harness.report.frame import Outcomes, Right, cells_frame, method_names
from harness.report.sections import ablation, cross, ranks
from harness.report.sections.conflicts import conflict_frame
from harness.report.sections.exported import exported_frame
from harness.report.sections.hidden import COLUMNS as HIDDEN
from harness.report.sections.hidden import WANTED, Columns, hidden_frame
from harness.report.sections.robustness import robustness
from harness.report.summary import summarise
from harness.results.exported import read_exported
from harness.results.record import Record
from harness.results.store import Store


@dataclass(frozen=True)
class Results:
    """Records with the frames that every table and figure comes from.

    `names` are the methods' names in the cells, by key, since a frame may add a suffix; `switches` and `crossed` are
    the frames of the ablation and of the cross table, `ranks` that of the calibrators' order, `robustness` that of
    what these lose without real images, `conflicts` that of records which contradict each other, `exported` that of
    exported cells, `hidden` that of what the mean accuracy hides, all empty where there is none.
    """

    records: tuple[Record, ...]
    outcomes: Outcomes
    cells: pd.DataFrame
    summary: pd.DataFrame
    names: dict[str, str]
    switches: pd.DataFrame
    crossed: pd.DataFrame
    ranks: pd.DataFrame
    robustness: pd.DataFrame
    conflicts: pd.DataFrame = field(default_factory=lambda: conflict_frame(()))
    exported: pd.DataFrame = field(default_factory=lambda: exported_frame(()))
    hidden: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=HIDDEN))

    @cached_property
    def ranges(self) -> pd.DataFrame:
        """The frame of activation ranges, which is large."""
        from harness.report.figures.ranges import range_frame

        return range_frame(self.records, self.cells)


def assemble(records: Iterable[Record], outcomes: Outcomes, catalog: Catalog) -> Results:
    """The frames of `records`; in whatever order these come, the result is the same."""
    ordered = tuple(sorted(records, key=lambda record: record.key))
    cells = cells_frame(ordered, outcomes)
    summary = summarise(cells, outcomes)
    names = method_names(ordered)
    switches = ablation.ablations(cells, summary, outcomes, names, _ablation_labels(names, catalog))
    crossed = cross.crosses(cells, summary, outcomes, names)
    return Results(
        ordered,
        outcomes,
        cells,
        summary,
        names,
        switches,
        crossed,
        ranks.ranks(crossed),
        robustness(crossed, cells, outcomes),
    )


def load(store: Store, catalog: Catalog, keys: set[str] | None = None) -> Results:
    """The results of a folder. What cannot be used of it is left out, and in the store's `problems`.

    Args:
        store: Where they are.
        catalog: Plugins: they say how a task's metric is resampled and what ablations are called.
        keys: Cells to take; all if None.

    Raises:
        UsageError: the folder cannot be read.
    """
    there = store.records()
    records: list[Record] = []
    outcomes = Right()
    for record in there:
        if keys is not None and record.cell.key not in keys:
            continue
        if record.status == "ok":
            found = store.outcomes_of(record)
            if found is None:
                continue
            if not isinstance(found, pd.DataFrame):
                outcomes.add(record.key, found)
            elif "correct" in found:
                outcomes.add(record.key, found["correct"].to_numpy(dtype=bool))
            elif resampling := _resampling(catalog, record.cell.task):
                outcomes.add(record.key, stats.resample(import_target(resampling)(found), len(found)))
        records.append(record)
    store.remember()
    for record in records:
        for name in odd(record):
            store.remark(record.key, f"has a diagnostic '{name}' of another form than the report's figures need")
    conflicts = [conflict for conflict in store.conflicts(there) if keys is None or conflict.other.cell.key in keys]
    exported, unreadable = read_exported(store.folder)
    store.problems |= unreadable
    shown = exported_frame(each for each in exported if keys is None or each.key in keys)
    made = assemble(records, outcomes, catalog)
    by_key = {record.key: record for record in records}

    def columns_of(key: str) -> Columns:
        record = by_key[key]
        return store.columns(record, WANTED) if {"label", "prediction"} <= _columns(catalog, record.cell.task) else {}

    hidden = hidden_frame(made.cells, columns_of)
    return replace(made, conflicts=conflict_frame(conflicts), exported=shown, hidden=hidden)


def _resampling(catalog: Catalog, task: str) -> str:
    """The task's `resampling`; none if its plugin is not here."""
    with contextlib.suppress(UsageError):
        return catalog.tasks.get(task).resampling
    return ""


def _columns(catalog: Catalog, task: str) -> set[str]:
    """The columns of the task's outcomes that it says the meaning of; none if its plugin is not here."""
    with contextlib.suppress(UsageError):
        return set(catalog.tasks.get(task).outcomes)
    return set()


def _ablation_labels(names: dict[str, str], catalog: Catalog) -> dict[str, dict[str, str]]:
    labels: dict[str, dict[str, str]] = {}
    for name in sorted(set(names.values())):
        with contextlib.suppress(UsageError):  # a variant, or its plugin is not here
            # A switch that changes nothing under one preset may be one of another.
            labels[name] = {v: label for preset in PRESETS for v, label in catalog.ablations(name, preset).items()}
    return labels
