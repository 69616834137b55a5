"""Every image source with every calibrator: which images are best under whose quantizer? Frames in, text out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from harness.io import text as safe
from harness.io.canonical import canonical_json
from harness.report import notes as noted
from harness.report import tables, verdicts
from harness.report.frame import GROUP, Outcomes, label_variants, parts_of
from harness.report.summary import COMPARED, adjusted, against_best, by_seed

TABLE = [*GROUP, "preset", "model"]  # what makes one table
COLUMNS = [
    *(*TABLE, "source", "calibrator", "method", "role", "origin", "trains", "status", "metric", "images", "seeds"),
    *("seed_list", "seeds_wanted", "verified", "accuracy", "accuracy_sd", "delta", "best", *COMPARED, "p_holm"),
]
MEAN = "mean"
_COMPARED = f"""\
- Rows are sources: the floor (noise), the others from the best down, the ceiling (real training images). Columns are
  calibrators from the best down. **Bold** is the data-free source of highest mean in its column, floor included: by
  itself no verdict. Of the others, what has no mark differs from it by the verdict, which
{verdicts.NOTE}  `?`: no verdict, since there is one seed in common or none.
- *{MEAN}* of a row is over the calibrators that every source was measured with, that of a column over the sources that
  were measured with every calibrator, floor and ceiling included. {tables.NONE}: not measured, or no such mean.
"""


def crosses(cells: pd.DataFrame, summary: pd.DataFrame, outcomes: Outcomes, names: Mapping[str, str]) -> pd.DataFrame:
    """One row per source and calibrator that were measured together, of every table that has at least two of each.

    Columns `best` to `p_value` compare the sources of one calibrator; `p_holm` is adjusted over a table.

    Args:
        cells: The frame of cells.
        summary: The same with seeds averaged.
        outcomes: Which images were right, by key.
        names: Name of the method in the cell, by key: that of the frame may have a suffix.
    """
    right = {place: by_seed(own, outcomes) for place, own in cells.groupby([*GROUP, "model"])}
    rows: list[dict[Any, Any]] = []
    for place, members in summary.merge(_parts(cells, names), on="method").groupby(TABLE, sort=True):
        found = members.drop_duplicates(["source", "calibrator"])
        several = min(found["source"].nunique(), found["calibrator"].nunique()) > 1
        if not several or not (found["status"] == "ok").any():  # or all of them are skipped at this precision
            continue
        compared: list[dict[Any, Any]] = []
        for _, column in found.sort_values(["calibrator", "source"]).groupby("calibrator"):
            compared += column.to_dict("records")
            against_best(compared[-len(column) :], right[*place[: len(GROUP)], place[-1]])
        rows += [{**row, "p_holm": p} for row, p in zip(compared, adjusted(compared), strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _parts(cells: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Preset, source and calibrator of every method that is a cross, both with their brackets.

    The name has the brackets; one without `+` is a source that was joined with its partner, which the options name. A
    transform counts as part of the calibrator that runs behind it.
    """
    found = []
    for method, key, text in cells.drop_duplicates("method")[["method", "key", "options"]].to_numpy():
        options = json.loads(text)
        own = {part.partition(":")[0]: (part, values) for part, values in options.get("parts", {}).items()}
        behind = [own[kind][1] for kind in ("transform", "calibrator") if kind in own]
        if own.keys() - {"transform"} == {"source", "calibrator"}:
            source, *others = (safe.visible(str(part)) for part in parts_of(names[key]))
            calibrator = "+".join(others) or safe.visible(own["calibrator"][0].partition(":")[2])
            values = [canonical_json(own["source"][1]), canonical_json(behind if behind[1:] else behind[0])]
            found.append([method, options.get("preset", ""), source, calibrator, *values])
    frame = pd.DataFrame(found, columns=["method", "preset", "source", "calibrator", "of_source", "of_calibrator"])
    for _, same in frame.groupby("preset"):
        for kind in ("source", "calibrator"):
            frame.loc[same.index, kind] = label_variants(same[kind].tolist(), same[f"of_{kind}"].tolist())
    return frame[["method", "preset", "source", "calibrator"]]


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows of every table."""
    several = len(frame["preset"].unique()) > 1
    for title, group in tables.groups(frame):
        for (preset, model), rows in group.groupby(["preset", "model"], sort=True):
            yield f"{model}, {title}{tables.metric(rows)}" + (f", preset {preset}" if several else ""), rows


def order(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Sources from the floor to the ceiling, calibrators: each by its mean, unmeasured ones last.

    If cells are missing, the mean distance to the best of each column or row counts.
    """
    ends = rows.groupby("source")["role"].first().map({"floor": 0, "ceiling": 2}).fillna(1)
    found = []
    for kind, other in (("source", "calibrator"), ("calibrator", "source")):
        mean = tables.standing(rows, kind, [*TABLE, other])
        found.append(sorted(mean.index, key=lambda name: (ends.get(name, 1), -mean[name], name)))
    return found[0], found[1]


def _shown(row: dict[Any, Any]) -> str:
    text = tables.accuracy(row)
    if row["best"] or row["status"] != "ok":
        return f"**{text}**" if row["best"] else text
    return text + verdicts.mark(row)


def _labels(rows: pd.DataFrame, kind: str) -> dict[str, str]:
    """Sources or calibrators with what the notes explain."""
    own = rows.assign(method=rows[kind], role=rows["role"] if kind == "source" else "")
    rebuilt = own["origin"].eq("reconstruction").groupby(own["method"]).transform("all")
    trained = own["trains"].ne("").groupby(own["method"]).transform("all")
    # It is calibrators that train; a source would get their mark where it was run with no other.
    trains = own["trains"].where(trained, "") if kind == "calibrator" else ""
    own = own.assign(origin=own["origin"].where(rebuilt, ""), trains=trains)
    own = own.drop_duplicates("method")
    return dict(zip(own["method"], tables.method_labels(own), strict=True))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of strings with margins."""
    sources, calibrators = order(rows)
    ranked = rows.assign(accuracy=verdicts.checked(rows))
    measured = ranked.pivot_table(index="source", columns="calibrator", values="accuracy")  # without what never was
    of_source = measured.dropna(axis=1).mean(axis=1).reindex(sources)
    of_calibrator = measured.dropna().mean().reindex(calibrators)
    text = {(row["source"], row["calibrator"]): _shown(row) for row in rows.to_dict("records")}
    shown, named = _labels(rows, "source"), _labels(rows, "calibrator")
    strings = pd.DataFrame({named[c]: [text.get((s, c), tables.NONE) for s in sources] for c in calibrators})
    strings[MEAN] = [tables.number(value, 2) for value in of_source]
    strings.loc[len(sources)] = [*(tables.number(value, 2) for value in of_calibrator), ""]
    return strings.set_axis(pd.Index([*(shown[s] for s in sources), MEAN], name="source"))


def markdown(frame: pd.DataFrame, cells: pd.DataFrame) -> str:
    """A table per model, scheme and precision."""
    parts = ["# Sources × calibrators\n"]
    for title, rows in split(frame):
        shown = table(rows)
        shown.columns = pd.MultiIndex.from_product([shown.columns, [""]])
        parts += [
            f"## {safe.markdown(title)}\n",
            *map(tables.markdown, tables.fitting(shown)),
            verdicts.sensitivity(rows),
        ]
    return "\n".join([*parts, notes(frame), *tables.unmeasured(cells[cells["method"].isin(frame["method"])])])


def notes(frame: pd.DataFrame) -> str:
    """What is explained below the tables."""
    marks = noted.marks(frame).replace("a reconstruction", "rows and columns of reconstructions only")
    return _COMPARED + noted.spread(frame) + marks


def latex(frame: pd.DataFrame) -> str:
    """The same tables for a paper, each in one piece."""
    found = ((title, table(rows)) for title, rows in split(frame))
    return "\n".join(tables.latex_table(title, shown, "l" * shown.shape[1]) for title, shown in found)


def csv(frame: pd.DataFrame) -> str:
    """The same at full precision, with unadjusted p-values."""
    return tables.csv(frame)
