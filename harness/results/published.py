"""Numbers that others have published: reads their files. They are never mixed with what was measured here."""

from __future__ import annotations

import io
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import StringConstraints, ValidationError

from harness.api.errors import UsageError
from harness.api.spec import SCHEMES, BitSpec, split_scheme
from harness.api.written import Written
from harness.identity.cell import FLOAT_BITS, FLOAT_SCHEME
from harness.io.files import read_regular
from harness.io.text import visible
from harness.io.toml import read_toml

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"
COLUMNS = ["method", "model", "task", "dataset", "metric", "bits", "scheme", "value", "source", "evidence", "note"]
RECOLLECTED = "M"  # label of numbers that were remembered and never checked; the reference documents write `[M]`
LABELS = ("V", "R", "P", "R/P", "N", "V2", "U", RECOLLECTED, f"[{RECOLLECTED}]")  # of `evidence`
FORM = "results/published/README.md"  # what says how the files are written
_WIDTHS = re.compile(r"(W\d+|MP\d+(\.\d+)?)A\d+(\.\d+)?", re.IGNORECASE)  # those beyond what cells have, too

Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Sentences = Mapping[Sentence, Sentence]


AnyWritten = TypeVar("AnyWritten", bound=Written)


class Names(Written):
    """The tables of `names.toml`: name -> name here. All must be there, since a table left out by mistake would lose
    its names without a word.
    """

    methods: Sentences
    models: Sentences
    bits: Sentences
    schemes: Sentences
    calibration: Sentences


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
        UsageError: there are none, or a file cannot be read or has what is not known; the message says which and why.
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


def read_written(path: Path, what: str, form: type[AnyWritten]) -> AnyWritten:
    """A TOML file of the form `form`, which is called `what` in messages.

    Raises:
        UsageError: it cannot be read, or it is not of that form; the message says where.
    """
    try:
        return form.model_validate(read_toml(path, what))
    except ValidationError as error:
        # A name that is not known comes first: what is missing may be meant by it.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = visible(".".join(map(str, first["loc"])))
    told = {"extra_forbidden": "is not known", "missing": "is missing"}.get(first["type"], first["msg"])
    raise UsageError(f"{what} {path} is not valid ({where}: {told}); see {FORM}")


def _rows(path: Path) -> pd.DataFrame:
    try:
        found = pd.read_csv(io.BytesIO(read_regular(path)), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"published numbers {path} cannot be read: {str(error).splitlines()[0]}") from None
    if missing := [name for name in COLUMNS if name not in found]:
        raise UsageError(f"published numbers {path} have no column {', '.join(missing)}")
    if odd := [name for name in map(str, found) if name.startswith("Unnamed: ") or name.rpartition(".")[0] in COLUMNS]:
        raise UsageError(f"published numbers {path} have {_odd(odd[0])}; see {FORM}")
    if extra := [visible(str(name)) for name in found if name not in COLUMNS]:
        raise UsageError(f"published numbers {path} have a column '{extra[0]}', which is not known; see {FORM}")
    if not isinstance(found.index, pd.RangeIndex):  # pandas then takes the first value of each row for its name
        raise UsageError(f"published numbers {path}, row 2: more values than columns; put text with commas in quotes")
    rows: pd.DataFrame = found[COLUMNS].apply(lambda column: column.str.strip().map(visible))
    value = pd.to_numeric(rows["value"], errors="coerce").astype(float)
    for line, (row, number) in enumerate(zip(rows.to_dict("records"), value, strict=True), start=2):
        if fault := _fault(row, number):
            raise UsageError(f"published numbers {path}, row {line}: {fault}; see {FORM}")
    return rows.assign(value=value)


def _odd(name: str) -> str:
    """What is odd with a column that pandas calls so."""
    return "a column without a name" if name.startswith("Unnamed: ") else f"two columns '{name.rpartition('.')[0]}'"


def _fault(row: Mapping[Hashable, Any], value: float) -> str:
    """What is wrong with a row, in words, or nothing."""
    if not 0 <= value <= 100:
        return f"value '{row['value']}' is not a number of points from 0 to 100"
    if row["evidence"] not in LABELS:
        return f"evidence '{row['evidence']}' is not known; known: {', '.join(LABELS)}"
    if (written := _written(row["bits"])) != row["bits"]:
        return f"bits '{row['bits']}' are written {written}"
    return ""


def _written(bits: str) -> str:
    """How a precision is written, so that it is found by its text alone: as in cells; in capitals, if cells cannot have
    it; and a name that is no precision as it is.
    """
    try:
        return str(BitSpec.parse(bits))
    except UsageError:
        return bits.upper() if _WIDTHS.fullmatch(bits) else bits


def _names(path: Path) -> dict[str, dict[str, str]]:
    what = "file with names of published numbers"
    names = read_written(path, what, Names)
    for name, ours in names.bits.items():
        if not _is_precision(ours):
            raise UsageError(f"{what} {path}: '{name}' in [bits] is '{ours}'; write {FLOAT_BITS}, or bits as W4A8")
    for name, ours in names.schemes.items():
        if split_scheme(ours)[0] not in (*SCHEMES, FLOAT_SCHEME):
            known = ", ".join((*SCHEMES, FLOAT_SCHEME))
            raise UsageError(f"{what} {path}: '{name}' in [schemes] is '{ours}', which is not known; known: {known}")
    found: dict[str, dict[str, str]] = names.model_dump()
    return found


def _is_precision(text: str) -> bool:
    """Whether cells have a precision of that text."""
    try:
        return text == FLOAT_BITS or text == str(BitSpec.parse(text))
    except UsageError:
        return False
