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
from harness.report.summary import COMPARED, UNPAIRED, Seeds, adjusted, by_seed, compared

COLUMNS = [
    *(*TABLE, "calibrator", "source", "role", "origin", "trains", "metric", "images", "seeds", "seeds_wanted"),
    *("to_real", "to_real_sd", "best", *COMPARED, "p_holm"),
]
Loss = NDArray[np.int64] | stats.Resampled  # what each image counts on the sources less on real images
_NOTES = f"""\
- Accuracy on a source's images less that on real training images, in points, over the seeds that both have: how much a
  calibrator depends on real images. Who gains little from them loses little without them, so this is no accuracy.
- *{MEAN}* is over the sources here, for calibrators that were measured with all of them. Rows are calibrators from the
  one that loses least down, which is **bold**: by itself no verdict. Of the others in the last column, what has no mark
  differs from it by the verdict, which
{verdicts.NOTE}  `?`: no verdict, since there is one seed in common or none.
"""


def robustness(crossed: pd.DataFrame, cells: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """One row per calibrator and source of every table with real images, and one for a calibrator's mean over sources.

    A source counts if two calibrators or more have both it and real images. Columns `best` to `p_holm` compare the
    calibrators by their means, or on the source if there is but one; of other rows they say nothing.

    Args:
        crossed: What `cross.crosses` returns.
        cells: The frame of cells.
        outcomes: Which images were right, by key.
    """
    right = {place: by_seed(own, outcomes) for place, own in cells.groupby([*GROUP, "model"])}
    rows: list[dict[str, Any]] = []
    usable = crossed[crossed["status"].eq("ok") & ~verdicts.unverified(crossed)]
    for place, members in usable.groupby(TABLE, sort=True):
        found = _table(members, right.get((*place[: len(GROUP)], place[-1]), {}))
        own = dict(zip(TABLE, place, strict=True))
        rows += [{**row, **own, "p_holm": p} for row, p in zip(found, adjusted(found), strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _table(members: pd.DataFrame, right: Mapping[str, Seeds]) -> list[dict[str, Any]]:
    """Rows of one table, source by source and then the means."""
    real = members[members["role"] == "ceiling"]
    if len(real["source"].unique()) != 1:
        return []
    ceilings = {row["calibrator"]: row for row in real.to_dict("records")}
    foreign = members[members["role"].isin(["method", "floor"]) & members["calibrator"].isin(list(ceilings))]
    by_source = {
        str(source): {row["calibrator"]: row for row in own.to_dict("records")}
        for source, own in foreign.groupby("source", sort=True)
        if len(own) > 1
    }
    columns = {source: [source] for source in by_source}
    if len(columns) > 1:
        columns[MEAN] = list(by_source)
    rows: list[dict[str, Any]] = []
    for name, sources in columns.items():
        column = []
        for calibrator, ceiling in sorted(ceilings.items()):
            own = [by_source[source][calibrator] for source in sources if calibrator in by_source[source]]
            losses = _losses(right.get(ceiling["method"], {}), [right.get(row["method"], {}) for row in own])
            if len(own) == len(sources) and losses:
                each = [_points(loss, len(own)) for loss in losses.values()]
                found = {
                    **{key: ceiling[key] for key in ("origin", "trains", "metric", "images")},
                    "calibrator": calibrator,
                    "source": name,
                    "role": "" if name == MEAN else own[0]["role"],
                    "seeds": len(losses),
                    "seeds_wanted": max(row["seeds_wanted"] for row in (ceiling, *own)),
                    "to_real": float(np.mean(each)),
                    "to_real_sd": float(np.std(each, ddof=1)) if len(each) > 1 else np.nan,
                    "best": False,
                    **UNPAIRED,
                }
                column.append((found, losses))
        if name == list(columns)[-1]:
            _against_least(column, len(sources))
        rows += [row for row, _ in column]
    return rows


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
    """Mark who loses least among those with most seeds, and compare the others with it, image by image."""
    best, least = max(column, key=lambda found: (found[0]["seeds"], found[0]["to_real"]), default=({}, {}))
    for row, losses in column:
        row["best"] = row is best
        if row is not best:
            row.update(_paired(losses, least, sources))
    tested = [row for row, _ in column if row["common_seeds"]]
    for row in tested:
        row["chosen"] = len(tested) + 1


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
    return cross.split(frame)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of strings: calibrators from the one that loses least down; the last column has the verdicts."""
    values = rows.pivot_table(index="calibrator", columns="source", values="to_real")
    roles = rows.drop_duplicates("source").set_index("source")["role"]
    sources = values.columns.drop(MEAN, errors="ignore")
    columns = sorted(sources, key=lambda name: (roles[name] != "floor", -values[name].mean(), name))
    columns += [MEAN] * (MEAN in values)
    standing = values[columns[-1]].fillna(-np.inf)
    calibrators = sorted(values.index, key=lambda name: (-standing[name], name))
    text = {
        (row["calibrator"], row["source"]): _shown(row, row["source"] == columns[-1]) for row in rows.to_dict("records")
    }
    own = rows.drop_duplicates("calibrator")
    named = dict(
        zip(own["calibrator"], tables.method_labels(own.assign(method=own["calibrator"], role="")), strict=True)
    )
    shown = {
        source + " (floor)" * (roles[source] == "floor"): [
            text.get((name, source), tables.NONE) for name in calibrators
        ]
        for source in columns
    }
    return pd.DataFrame(shown, index=pd.Index([named[name] for name in calibrators], name="calibrator"))


def _shown(row: dict[Any, Any], judged: bool) -> str:
    text = tables.number(row["to_real"], 2, "+") + (f" ± {row['to_real_sd']:.2f}" if row["seeds"] > 1 else "")
    text += f" [{row['seeds']}/{row['seeds_wanted']}]" if row["seeds"] < row["seeds_wanted"] else ""
    if row["best"]:
        return f"**{text}**"
    return text + verdicts.mark(row) * judged


def notes(frame: pd.DataFrame) -> str:
    """What is explained below the tables."""
    return _NOTES + noted.spread(frame) + noted.marks(frame)


def markdown(frame: pd.DataFrame) -> str:
    """A table per model, scheme and precision."""
    parts = ["# What calibrators lose on images that are not real\n"]
    for title, rows in split(frame):
        shown = table(rows)
        shown.columns = pd.MultiIndex.from_product([shown.columns, [""]])
        found = map(tables.markdown, tables.fitting(shown))
        parts += [f"## {safe.markdown(title)}\n", *found, verdicts.sensitivity(rows)]
    return "\n".join([*parts, notes(frame)])
