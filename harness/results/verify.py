"""Whether a record agrees with itself: with the cell that it names, and with the outcomes that lie beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.errors import UsageError, first_line
from harness.api.plugins import import_target
from harness.catalog.catalog import Catalog
from harness.catalog.metrics import secondary
from harness.results.record import Record

if TYPE_CHECKING:
    import pandas as pd

SLACK = 1e-4  # points between a metric and what its outcomes give; single images are 0.001 points and more
_SEEDS = range(2**63)


def resampling_of(task: str) -> str | None:
    """What the task says of its metric, see `TaskInfo.resampling`; None if its plugin is not here."""
    with suppress(UsageError):
        return Catalog.default().tasks.get(task).resampling
    return None


@cache
def checker() -> str:
    """Hash of what reads and checks outcomes, so that only what it found itself is believed."""
    own = (Path(__file__), Path(__file__).with_name("sidecars.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in own)).hexdigest()


def flaw(record: Record) -> str | None:
    """What is wrong with the record by itself, in words that follow its name; None if nothing is."""
    cell = record.cell
    if not (record.key == cell.key or record.key == cell.labelled_key):  # noqa: PLR1714 - the second takes its time
        return "does not hold the cell that its key says"
    if cell.seed not in _SEEDS or (cell.limit is not None and cell.limit not in _SEEDS[1:]):
        return "has a seed or a limit that no run has"
    if record.status == "ok":
        return _wrong_metrics(record)
    return f"is {record.status} and has metrics" if record.metrics else None


def _wrong_metrics(record: Record) -> str | None:
    primary = record.primary_metric
    if primary is None or primary not in record.metrics:
        return f"ranks by '{primary}', which is not one of its metrics"
    for name in (primary, *secondary()):
        value = record.metrics.get(name, 0.0)
        if not -SLACK <= value <= 100 + SLACK:
            return f"has {name} {value:g}, which lies outside of 0 to 100 points"
    return None


def contradiction(record: Record, outcomes: pd.DataFrame, resampling: str | None) -> str | None:
    """What the outcomes say otherwise than the record, in words that follow its name; None if they agree.

    Args:
        record: One that is ok and has no `flaw`.
        outcomes: A row per evaluation image.
        resampling: What `resampling_of` says of the record's task; its metric is unknown if that is None.
    """
    return _contradiction(record, len(outcomes), lambda: metric_of(outcomes, resampling))


def agrees(record: Record, right: int, images: int) -> bool:
    """Whether a record says what its outcomes do, of a task whose metric is the share of images that are right.

    Args:
        record: One that is ok and has no `flaw`.
        right: Images that are.
        images: All of them.
    """
    return _contradiction(record, images, lambda: 100 * right / images) is None


def _contradiction(record: Record, images: int, metric: Callable[[], float | None]) -> str | None:
    cell = record.cell
    if not images:
        return "has outcomes of no image"
    if cell.limit is not None and images != cell.limit:
        return f"has outcomes of {images:,} images, though its cell is of {cell.limit:,}"
    try:
        found = metric()
    except Exception as error:  # columns may be missing or hold anything
        return f"has outcomes from which its metric cannot be computed ({first_line(error)})"
    own = record.metrics[record.primary_metric or ""]
    if found is None or abs(found - own) <= SLACK:
        return None
    return f"says {record.primary_metric} {own:.4f}, but its outcomes give {found:.4f} points"


def metric_of(outcomes: pd.DataFrame, resampling: str | None) -> float | None:
    """The primary metric in points; None if how it is computed is not known."""
    import numpy as np

    if resampling:
        return float(import_target(resampling)(outcomes)(np.ones((1, len(outcomes))))[0])
    if resampling is None or "correct" not in outcomes:
        return None
    if outcomes["correct"].dtype != np.bool_:
        raise ValueError(f"column 'correct' holds {outcomes['correct'].dtype}, not truth values")
    return 100 * float(outcomes["correct"].mean())
