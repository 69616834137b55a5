"""Interactive tables: what a browser needs to sort and filter rows without knowing what they mean.

Every column is coded here: its distinct values in their order, and for each row the place of its value among them.
Numbers are thus sorted as numbers and shown exactly as the other tables show them, and a page sorts small integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.catalog import metrics
from harness.report import tables, verdicts
from harness.report.frame import STAGES
from harness.report.sections import published

FILTERS = ("suite", "task", "dataset", "model", "scheme", "bits", "role", "status")
ROLES = {"float": "float", "method": "data-free", "floor": "floor (noise)", "ceiling": "ceiling (real data)"}


@dataclass(frozen=True)
class Column:
    """One column: `levels` are the distinct texts in order, the first `known` of them values and the rest (`–`,
    `failed`) what stands where a value is missing; `codes` gives the level of every row.
    """

    name: str
    levels: list[str]
    known: int
    codes: list[int]
    numeric: bool = False

    @property
    def filtered(self) -> bool:
        """Whether rows can be chosen by this column's values."""
        return self.name in FILTERS


@dataclass(frozen=True)
class Grid:
    """One table: `name` is its id in the page, `caption` what it shows."""

    name: str
    caption: str
    columns: list[Column]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.columns[0].codes) if self.columns else 0

    def payload(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "rows": self.rows,
            "columns": [
                {"levels": column.levels, "known": column.known, "codes": column.codes, "numeric": column.numeric}
                for column in self.columns
            ],
        }


def coded(name: str, texts: Sequence[str], order: Sequence[Any], *, numeric: bool = False) -> Column:
    """A column from the text and the sort value of every row; where the latter is None or NaN, a value is missing."""
    pairs = list(zip(order, texts, strict=True))
    known = sorted({pair for pair in pairs if not _missing(pair[0])})
    absent = sorted({text for value, text in pairs if _missing(value)})
    place = {pair: number for number, pair in enumerate(known)}
    gaps = {text: number for number, text in enumerate(absent, start=len(known))}
    codes = [gaps[pair[1]] if _missing(pair[0]) else place[pair] for pair in pairs]
    return Column(name, [*(text for _, text in known), *absent], len(known), codes, numeric)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and bool(np.isnan(value)))


def _words(name: str, values: Iterable[Any]) -> Column:
    """A column of text, sorted without regard to case."""
    texts = [str(value) for value in values]
    return coded(name, texts, [(text.casefold(), text) for text in texts])


def _bits(values: Sequence[str]) -> Column:
    return coded("bits", list(values), [tables.bit_order(bits) for bits in values])


def _numbers(name: str, values: pd.Series[Any], digits: int, sign: str = "") -> Column:
    found = [float(value) for value in pd.to_numeric(values)]
    return coded(name, [tables.number(value, digits, sign) for value in found], found, numeric=True)


def _result_name(measured: pd.Series[Any]) -> str:
    """What the column of results is called: the metric, if there is one only."""
    found = sorted(set(measured.dropna()))
    return metrics.title(found[0]) if len(found) == 1 else "result (points)"


def _coordinates(frame: pd.DataFrame) -> list[Column]:
    """The columns that come first."""
    return [
        _words("method", tables.method_labels(frame)),
        _words("model", frame["model"]),
        _bits(frame["bits"].tolist()),
    ]


def _origins(frame: pd.DataFrame) -> list[Column]:
    """Those that come last, since they are mostly the same in all rows."""
    return [
        *([] if len(frame["suite"].unique()) < 2 else [_words("suite", frame["suite"])]),
        _words("task", frame["task"]),
        _words("role", [ROLES[role] for role in frame["role"]]),
        _words("origin", frame["origin"]),
    ]


def results_grid(summary: pd.DataFrame) -> Grid:
    """The summary, in the order of the comparison tables: a row per group, model and method, seeds averaged."""
    ordered = [
        rows.sort_values("method", key=lambda names: names.map(tables.order(group).index), kind="stable")
        for _, group in tables.groups(summary)
        for _, rows in group.groupby("model", sort=True)
    ]
    frame = pd.concat(ordered, ignore_index=True) if ordered else summary
    rows = frame.to_dict("records")
    standing = [tables.significance(row) for row in rows]
    below = [0.0 if row["best"] else None if row["role"] == "float" else row["to_best"] for row in rows]
    seeds = [
        f"{row['seeds']}/{row['seeds_wanted']}" if row["seeds"] < row["seeds_wanted"] else str(row["seeds"])
        for row in rows
    ]
    columns = [
        *_coordinates(frame),
        *([] if frame["metric"].nunique() < 2 else [_words("metric", frame["metric"].fillna(tables.NONE))]),
        coded(
            _result_name(frame["metric"]), [*map(tables.highlighted, rows)], frame["accuracy"].tolist(), numeric=True
        ),
        _numbers("Δ", frame["delta"].where(frame["role"] != "float"), 2, "+"),
        coded("vs best", standing, below),
        _numbers("images", frame["images"], 0),
        coded("seeds", seeds, frame["seeds"].tolist(), numeric=True),
        _words("scheme", frame["scheme"]),
        _numbers("size MiB", frame["weight_mib"], 2),
        _numbers("GBOPs", frame["gbops"], 2),
        _numbers("W bits", frame["mean_weight_bits"], 2),
        _numbers("W eff.", frame["effective_weight_bits"], 2),
        _numbers("A eff.", frame["effective_activation_bits"], 2),
        _numbers("total s", frame["total_s"], 1),
        _numbers("peak MiB", frame["peak_memory_mib"], 0),
        *_origins(frame),
    ]
    return Grid("results", "Methods, seeds averaged", columns)


def cells_grid(cells: pd.DataFrame) -> Grid:
    """Every cell, failed and skipped ones included."""
    shown = [
        verdicts.marked(tables.number(row["accuracy"], 2), row.get("verified"))
        if row["status"] == "ok"
        else row["status"]
        for row in cells.to_dict("records")
    ]
    columns = [
        *_coordinates(cells),
        coded("seed", [str(seed) for seed in cells["seed"]], cells["seed"].tolist(), numeric=True),
        _words("scheme", cells["scheme"]),
        _words("status", cells["status"]),
        coded(_result_name(cells["metric"]), shown, cells["accuracy"].tolist(), numeric=True),
        _numbers("images", cells["images"], 0),
        *(_numbers(f"{stage} s", cells[f"{stage}_s"], 1) for stage in STAGES),
        _numbers("total s", cells["total_s"], 1),
        _numbers("peak MiB", cells["peak_memory_mib"], 0),
        _numbers("size MiB", cells["weight_mib"], 2),
        _numbers("GBOPs", cells["gbops"], 2),
        _numbers("W eff.", cells["effective_weight_bits"], 2),
        _numbers("A eff.", cells["effective_activation_bits"], 2),
        *_origins(cells),
        _words("key", cells["key"].str[:12]),
        coded("reason", _first_lines(cells["reason"]), [reason or None for reason in cells["reason"].fillna("")]),
    ]
    return Grid("cells", "Every cell that was run", columns)


def _first_lines(reasons: pd.Series[Any]) -> list[str]:
    return [str(reason).partition("\n")[0] for reason in reasons.fillna("")]


def published_grid(frame: pd.DataFrame) -> Grid:
    """Published numbers beside reproduced ones, from the frame of `published.beside`: the pairs first."""
    frame = frame.assign(alone=frame["reproduced"].isna()).sort_values("alone", kind="stable", ignore_index=True)
    labels, numbers = published.measured_as(frame), published.sources(frame)
    means = [published.mean(row) for row in frame.to_dict("records")]
    columns = [
        _words("method", frame["method"]),
        _words("model", frame["model"]),
        _words("task", frame["task"]),
        _words("dataset", frame["dataset"]),
        _words("metric", frame["metric"]),
        _bits(frame["bits"].tolist()),
        _words("scheme", frame["scheme"]),
        _numbers("published", frame["published"], 2),
        coded("reproduced", means, frame["reproduced"].tolist(), numeric=True),
        _numbers("difference", frame["difference"], 2, "+"),
        _numbers("images", frame["images"], 0),
        _numbers("seeds", frame["seeds"], 0),
        coded("measured as", labels, [label or None for label in labels]),
        _words("label", frame["evidence"]),
        coded("source", [f"[{numbers[s]}]" for s in frame["source"]], [numbers[s] for s in frame["source"]]),
        _words("note", frame["note"]),
    ]
    return Grid("published", "Published numbers, and ours beside them", columns)
