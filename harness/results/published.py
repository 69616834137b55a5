"""Numbers that others have published: reads their files. They are never mixed with what was measured here."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness.api.errors import UsageError
from harness.io.files import read_regular
from harness.io.text import visible
from harness.io.toml import read_toml

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"
COLUMNS = ["method", "model", "task", "dataset", "metric", "bits", "scheme", "value", "source", "evidence", "note"]
RECOLLECTED = "M"  # label of numbers that were remembered and never checked; the reference documents write `[M]`
KINDS = ("methods", "models", "bits", "schemes", "calibration")  # tables of `names.toml`


@dataclass(frozen=True)
class Published:
    """Published numbers, a row each (`COLUMNS`), and what their names are called here: kind -> name -> name here. Of
    kind `calibration` it is what the method is calibrated on, where that is not real images.

    `recollected` counts the rows that were left out because nobody has checked them.
    """

    numbers: pd.DataFrame
    names: Mapping[str, Mapping[str, str]]
    recollected: int = 0


def read(folder: Path = FOLDER) -> Published:
    """All published numbers in `folder`: its `*.csv` and `names.toml`.

    Raises:
        UsageError: there are none, or a file cannot be read; the message says which and why.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise UsageError(f"there are no published numbers in {folder}; --published needs a clone of the repository")
    rows = pd.concat([_rows(path) for path in paths], ignore_index=True)
    recollected = recollections(rows)
    numbers = rows[~recollected].sort_values([*COLUMNS[:7], "source"], ignore_index=True)
    return Published(numbers, _names(folder / "names.toml"), int(recollected.sum()))


def recollections(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows carry the label of a recollection, in its column or in the text of source or note."""
    written = f"[{RECOLLECTED}]"
    label = rows["evidence"].str.strip().isin([RECOLLECTED, written])
    text = rows["source"].str.contains(written, regex=False) | rows["note"].str.contains(written, regex=False)
    marked: pd.Series[bool] = label | text
    return marked


def _rows(path: Path) -> pd.DataFrame:
    try:
        content = io.BytesIO(read_regular(path))
        found = pd.read_csv(content, dtype={name: str for name in COLUMNS if name != "value"}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"published numbers {path} cannot be read: {str(error).splitlines()[0]}") from None
    if missing := [name for name in COLUMNS if name not in found]:
        raise UsageError(f"published numbers {path} have no column {', '.join(missing)}")
    value = pd.to_numeric(found["value"], errors="coerce")
    if value.isna().any():
        line = int(value.isna().to_numpy().argmax()) + 2
        raise UsageError(
            f"published numbers {path}, row {line}: value '{found['value'].iloc[line - 2]}' is not a number"
        )
    if not np.isfinite(value).all():
        raise UsageError(f"published numbers {path} hold a value that is not finite")
    texts = {name: found[name].map(visible) for name in COLUMNS if name != "value"}
    return found.assign(value=value, **texts)[COLUMNS]


def _names(path: Path) -> dict[str, dict[str, str]]:
    tables = read_toml(path, "names of published numbers")
    found = {kind: tables.get(kind, {}) for kind in KINDS}
    if wrong := [kind for kind, names in found.items() if not isinstance(names, dict)]:
        raise UsageError(f"names of published numbers {path}: {wrong[0]} is not a table")
    return {kind: {str(name): str(ours) for name, ours in names.items()} for kind, names in found.items()}
