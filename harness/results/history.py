"""The history of pinned results: `results/history.csv`, a row per case and run, and where the series change level.

Runs are numbered in the order in which they were added; their dates are those of commits, so that a run of an old
commit does not look new.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.io.files import is_there, read_regular, reason, write_atomically
from harness.io.text import visible
from harness.results.provenance import Revision

if TYPE_CHECKING:
    import pandas as pd

CASE = ("suite", "task", "model", "method", "bits", "scheme", "seed")
_MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Row:
    """One case of one run. `value` is in points; `environment` is equal where arithmetic is."""

    run: int
    date: str
    commit: str
    modified: bool
    label: str
    environment: str
    suite: str
    task: str
    model: str
    method: str
    bits: str
    scheme: str
    seed: int
    metric: str
    value: float
    images: int


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Number:
    """What a run measured of one cell."""

    cell: Cell
    metric: str
    value: float
    images: int


def append(path: Path, numbers: Iterable[Number], label: str, revision: Revision | None, environment: str) -> int:
    """Add a run; returns how many rows that were.

    Raises:
        UsageError: the file is malformed or cannot be written.
    """
    old = read(path) if is_there(path) else None
    run = 1 if old is None or old.empty else int(old["run"].max()) + 1
    commit, date, modified = (revision.commit, revision.date, revision.modified) if revision else ("", "", False)
    rows = [
        Row(
            run=run,
            date=date,
            commit=commit,
            modified=modified,
            label=label,
            environment=environment,
            metric=number.metric,
            value=round(number.value, 6),
            images=number.images,
            **number.cell.model_dump(include=set(CASE)),
        )
        for number in numbers
    ]
    before = read_regular(path).decode("utf-8") if old is not None else ",".join(COLUMNS)
    before = before.rstrip("\n") + "\n"

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(before)
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(map(asdict, rows))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise UsageError(f"cannot write the history {path} ({reason(error)}); make its folder writable") from None
    return len(rows)


def read(path: Path) -> pd.DataFrame:
    """The rows, in the order in which they were added; columns as in `Row`.

    Raises:
        UsageError: there is no such file, or it is malformed.
    """
    import pandas as pd

    text = ("date", "commit", "label", "environment", "suite", "task", "model", "method", "bits", "scheme", "metric")
    try:
        frame = pd.read_csv(io.BytesIO(read_regular(path)), dtype=dict.fromkeys(text, "str"), keep_default_na=False)
        if list(frame.columns) != list(COLUMNS):
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        frame = frame.astype({"run": "int64", "seed": "int64", "images": "int64", "value": "float64"})
        if not np.isfinite(frame["value"]).all():
            raise ValueError("a value is not finite")
        for name in text:
            frame[name] = frame[name].map(visible)
        if (frame["images"] < 1).any():
            raise ValueError("a row is of no images")
    except FileNotFoundError:
        raise UsageError(f'there is no history {path}; regress --history "label" begins one') from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"history {path} cannot be read ({reason}); restore it from git") from None
    return frame


def change_points(values: ArrayLike, resolution: float) -> list[int]:
    """Where a series changes its level: indices of the first value of every level but the first.

    Binary segmentation (Scott and Knott, 1974): a segment is split where that reduces the sum of squares most, as long
    as it does so by more than 2 σ² log n, Schwarz's criterion for a place and a level. σ is estimated from the median
    of steps between neighbours, which a few changes do not move, and is at least `resolution`.

    Args:
        values: The series, (n,).
        resolution: The smallest step that the values can make: one image, in their unit.
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) < 2:
        return []
    steps = np.diff(series)
    spread = _MAD_TO_SD * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    penalty = 2 * max(spread, resolution) ** 2 * math.log(len(series))
    found: list[int] = []
    open_segments = [(0, len(series))]
    while open_segments:
        low, high = open_segments.pop()
        if high - low < 2:
            continue
        segment = series[low:high]
        left = np.arange(1, len(segment))
        right = len(segment) - left
        sums = np.cumsum(segment)[:-1]
        gains = left * right / len(segment) * (sums / left - (segment.sum() - sums) / right) ** 2
        place = int(np.argmax(gains))
        if gains[place] > penalty:
            middle = low + place + 1
            found.append(middle)
            open_segments += [(low, middle), (middle, high)]
    return sorted(found)


@dataclass(frozen=True)
class Change:
    """A change of level: rows of the frame before and after it, and whether the environment changed as well."""

    before: Row
    after: Row
    other_environment: bool

    def __str__(self) -> str:
        """One line: the case, old and new value, the run."""
        a, b = self.before, self.after
        case = f"{b.suite} {b.model} {b.method} {b.bits} {b.scheme} seed {b.seed}"
        commit = f", commit {b.commit[:12]}{' with changes' if b.modified else ''}" if b.commit else ""
        note = "; the environment changed, too" if self.other_environment else ""
        return f"{case}: {a.value:.2f} → {b.value:.2f} in run {b.run} ({b.label}{commit}{note})"


def series(frame: pd.DataFrame) -> list[list[Row]]:
    """The rows of every case in the order of its runs; a case has one metric and number of images."""
    groups = frame.groupby([*CASE, "metric", "images"], sort=True)
    return [_rows(group) for _, group in groups]


def _rows(frame: pd.DataFrame) -> list[Row]:
    return [Row(**{str(name): value for name, value in row.items()}) for row in frame.to_dict("records")]


def changes(rows: Sequence[Row]) -> list[Change]:
    """The changes of level in one case's rows."""
    resolution = 100 / rows[0].images
    return [
        Change(rows[place - 1], rows[place], rows[place - 1].environment != rows[place].environment)
        for place in change_points([row.value for row in rows], resolution)
    ]
