"""What does every calibrator lose on images that are not real ones? Frames in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.io import text as safe
from harness.report import notes as noted
from harness.report import stats, tables, verdicts
from harness.report.frame import GROUP, Outcomes
from harness.report.sections import cross
from harness.report.sections.cross import MEAN, TABLE
from harness.report.summary import COMPARED, UNPAIRED, Seeds, adjusted, by_seed, compared, count_chosen

EVERY = ""  # in place of a source's name, which is not empty: the mean over all of them
COLUMNS = [
    *(*TABLE, "ceiling", "calibrator", "source", "role", "origin", "trains", "metric", "images", "seeds"),
    *("seeds_wanted", "verified", "to_real", "to_real_sd", "best", *COMPARED, "p_holm"),
]
Loss = NDArray[np.int64] | stats.Resampled  # what each image counts on the sources less on real images
_NOTES = f"""\
- The metric on a source's images less that on real training images, in points, over the seeds that both have: how much
  a calibrator depends on real images. Who gains little from them loses little without them, so this is no accuracy.
- *{MEAN}* is over the sources here, the floor among them, for calibrators that were measured with all of them; without
  it sources and calibrators have too little in common for a verdict. {tables.NONE}: not measured, or no such mean.
- Rows are calibrators from the one that loses least down. **Bold** is that one among those with most seeds: by itself
  no verdict. Of the others in the last column, what has no mark differs from it by the verdict, which
{verdicts.NOTE}  `?`: no verdict, since there is one seed in common or none.
"""


def robustness(crossed: pd.DataFrame, cells: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """One row per calibrator and source of every table with real images, and one for a calibrator's mean over sources.

    A source counts if two calibrators or more have seeds of both it and real images. Columns `best` to `p_holm` compare
    the calibrators by their means (`EVERY`), or on the source if there is but one; of other rows they say nothing.
    Where several sources are of real images, each has tables of its own.

    Args:
        crossed: What `cross.crosses` returns.
        cells: The frame of cells.
        outcomes: Which images were right, by key.
    """
    right = {place: by_seed(own, outcomes) for place, own in cells.groupby([*GROUP, "model"])}
    rows: list[dict[str, Any]] = []
    measured = crossed[crossed["status"].eq("ok")].assign(verified=lambda own: ~verdicts.unverified(own))
    for place, members in measured.groupby(TABLE, sort=True):
        seeds = right.get((*place[: len(GROUP)], place[-1]), {})
        own = dict(zip(TABLE, place, strict=True))
        for ceiling, real in members[members["role"] == "ceiling"].groupby("source", sort=True):
            found = _table(real, members[members["role"].isin(["method", "floor"])], seeds)
            named = {**own, "ceiling": ceiling}
            rows += [{**row, **named, "p_holm": p} for row, p in zip(found, adjusted(found), strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _table(real: pd.DataFrame, foreign: pd.DataFrame, right: Mapping[str, Seeds]) -> list[dict[str, Any]]:
    """Rows of one table, source by source and then the means."""
    ceilings = {row["calibrator"]: row for row in real.sort_values("calibrator").to_dict("records")}
    own: dict[str, dict[str, dict[Any, Any]]] = {}  # by source and calibrator
    for row in foreign.sort_values("source").to_dict("records"):
        own.setdefault(row["source"], {})[row["calibrator"]] = row

    def column(name: str, sources: Sequence[str]) -> list[tuple[dict[str, Any], Mapping[int, Loss]]]:
        found: list[tuple[dict[str, Any], Mapping[int, Loss]]] = []
        for calibrator, ceiling in ceilings.items():
            rows = [own[source][calibrator] for source in sources if calibrator in own[source]]
            losses = _losses(right.get(ceiling["method"], {}), [right.get(row["method"], {}) for row in rows])
            if len(rows) == len(sources) and losses:
                found.append((_row(name, ceiling, rows, losses), losses))
        return found

    columns = {source: column(source, [source]) for source in own}
    columns = {source: found for source, found in columns.items() if len(found) > 1}
    sources = list(columns)
    if len(sources) > 1:
        columns[EVERY] = column(EVERY, sources)
        _against_least(columns[EVERY], len(sources))
    elif sources:
        _against_least(columns[sources[0]], 1)
    return [row for found in columns.values() for row, _ in found]


def _row(
    name: str, ceiling: Mapping[Any, Any], rows: Sequence[Mapping[Any, Any]], losses: Mapping[int, Loss]
) -> dict[str, Any]:
    each = [_points(loss, len(rows)) for loss in losses.values()]
    return {
        **{key: ceiling[key] for key in ("calibrator", "origin", "trains", "metric", "images")},
        "source": name,
        "role": "" if name == EVERY else rows[0]["role"],
        "seeds": len(losses),
        "seeds_wanted": max(row["seeds_wanted"] for row in (ceiling, *rows)),
        "verified": all(row["verified"] for row in (ceiling, *rows)),
        "to_real": float(np.mean(each)),
        "to_real_sd": float(np.std(each, ddof=1)) if len(each) > 1 else np.nan,
        "best": False,
        **UNPAIRED,
    }


def _losses(real: Seeds, foreign: Sequence[Seeds]) -> dict[int, Loss]:
    """By seed that all have: the sum over the sources of what is right there, less what is right on real images."""
    found: dict[int, Loss] = {}
    for seed in sorted(set(real).intersection(*foreign)) if foreign else ():
        first, others = real[seed], [own[seed] for own in foreign]
        if any(len(other) != len(first) for other in others):
            continue
        resampled = [other for other in others if isinstance(other, stats.Resampled)]
        if isinstance(first, stats.Resampled):
            values = sum(other.value - first.value for other in resampled)
            draws = np.sum([other.draws - first.draws for other in resampled], axis=0)
            found[seed] = stats.Resampled(first.images, values, draws)
        else:
            found[seed] = np.sum([np.asarray(other, dtype=np.int64) - first for other in others], axis=0)
    return found


def _points(loss: Loss, sources: int) -> float:
    """Its mean over images and sources."""
    return loss.value / sources if isinstance(loss, stats.Resampled) else 100 * float(loss.mean()) / sources


def _against_least(column: Sequence[tuple[dict[str, Any], Mapping[int, Loss]]], sources: int) -> None:
    """Mark who loses least among the verified with most seeds, and compare the others with it, image by image."""
    known = [(row, losses) for row, losses in column if row["verified"]]
    if not known:
        return
    best, least = max(known, key=lambda found: (found[0]["seeds"], found[0]["to_real"]))
    best["best"] = True
    for row, losses in known:
        if row is not best:
            row.update(_paired(losses, least, sources))
    count_chosen(row for row, _ in known)


def _paired(ours: Mapping[int, Loss], least: Mapping[int, Loss], sources: int) -> dict[str, Any]:
    """Compare what two calibrators lose, over the seeds that both have; empty if that cannot be."""
    both = [(ours[seed], least[seed]) for seed in sorted(ours.keys() & least.keys())]
    if not both or any(len(a) != len(b) for a, b in both):
        return {}
    pairs = [(a, b) for a, b in both if isinstance(a, stats.Resampled) and isinstance(b, stats.Resampled)]
    if not pairs:
        return compared(stats.compare_counts(np.stack([a - b for a, b in both]), sources))  # type: ignore[operator]
    first, second = (
        [stats.Resampled(loss.images, loss.value / sources, loss.draws / sources) for loss in losses]
        for losses in zip(*pairs, strict=True)
    )
    return compared(stats.compare_resampled(first, second))


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows of every table."""
    several = len(frame["ceiling"].unique()) > 1
    for title, rows in cross.split(frame):
        for ceiling, own in rows.groupby("ceiling", sort=True):
            yield title + (f", against {ceiling}" if several else ""), own


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of strings: calibrators from the one that loses least down; the last column has the verdicts."""
    values = rows.pivot_table(index="calibrator", columns="source", values="to_real")
    roles = rows.drop_duplicates("source").set_index("source")["role"]
    sources = values.columns.drop(EVERY, errors="ignore")
    columns = sorted(sources, key=lambda name: (roles[name] != "floor", -values[name].mean(), name))
    columns += [EVERY] * (EVERY in values)
    judged = columns[-1] if EVERY in values or len(columns) == 1 else None
    standing = values.mean(axis=1) if judged is None else values[judged].fillna(-np.inf)
    calibrators = sorted(values.index, key=lambda name: (-standing[name], name))
    text = {(row["calibrator"], row["source"]): _shown(row, row["source"] == judged) for row in rows.to_dict("records")}
    own = rows.drop_duplicates("calibrator")
    labels = tables.method_labels(own.assign(method=own["calibrator"], role=""))
    named = dict(zip(own["calibrator"], labels, strict=True))
    heads = [MEAN if name == EVERY else name + " (floor)" * (roles[name] == "floor") for name in columns]
    shown = [[text.get((name, source), tables.NONE) for source in columns] for name in calibrators]
    return pd.DataFrame(shown, pd.Index([named[name] for name in calibrators], name="calibrator"), heads)


def _shown(row: dict[Any, Any], judged: bool) -> str:
    text = tables.number(row["to_real"], 2, "+") + (f" ± {row['to_real_sd']:.2f}" if row["seeds"] > 1 else "")
    text += f" [{row['seeds']}/{row['seeds_wanted']}]" if row["seeds"] < row["seeds_wanted"] else ""
    text = verdicts.marked(text, row["verified"])
    if row["best"]:
        return f"**{text}**"
    return text + verdicts.mark(row) * judged


def notes(frame: pd.DataFrame) -> str:
    """What is explained below the tables."""
    spread = "- **±** is the standard deviation over seeds.\n" if (frame["seeds"] > 1).any() else ""
    if (frame["seeds"] < frame["seeds_wanted"]).any():
        spread += "- [2/3]: of 3 seeds that were run, source and real images have 2 in common.\n"
    return _NOTES + spread + noted.marks(frame)


def markdown(frame: pd.DataFrame) -> str:
    """A table per model, scheme and precision."""
    parts = ["# What calibrators lose on images that are not real\n"]
    for title, rows in split(frame):
        shown = table(rows)
        shown.columns = pd.MultiIndex.from_product([shown.columns, [""]])
        found = map(tables.markdown, tables.fitting(shown))
        parts += [f"## {safe.markdown(title)}\n", *found, verdicts.sensitivity(rows)]
    return "\n".join([*parts, notes(frame)])
