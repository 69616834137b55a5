"""Do calibrators come in the same order on synthetic images as on real ones? Kendall's τ. Frames in, text out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from harness.io import text as safe
from harness.report import stats, tables
from harness.report.frame import CONTEXT
from harness.report.verdicts import checked

PLACE = [*CONTEXT, "scheme", "preset", "model"]  # what a row of a table may mix precisions of
COLUMNS = [*PLACE, "ceiling", "source", "precisions", "pairs", "within", "points", "overall"]
NOTES = (
    "- Kendall's τ_b between mean accuracies on a source's images and on real training images (1: the same order, 0: "
    "none, -1: reversed). *Within a precision* compares calibrators at one precision and is averaged over precisions, "
    "with the number of calibrator pairs behind it; *overall* is over all calibrators and precisions, whose order is "
    "mostly that of the precisions. A source with a high τ can choose a calibrator without real images."
)


def ranks(crossed: pd.DataFrame) -> pd.DataFrame:
    """One row per model, scheme and source that has at least two calibrators in common with real images.

    Where several sources are of real images (`ceiling`), each is compared with.

    Args:
        crossed: what `cross.crosses` returns.

    Returns:
        Columns of `COLUMNS`: `within`, `overall` are τ, `pairs` the calibrator pairs compared within a precision,
        `points` the calibrators and precisions compared overall. NaN where one side knows no order.
    """
    rows: list[dict[str, Any]] = []
    measured = crossed.assign(accuracy=checked(crossed)).dropna(subset=["accuracy"])
    for place, members in measured.groupby(PLACE, sort=True):
        wide = members.pivot_table(index=["bits", "calibrator"], columns="source", values="accuracy")
        ceilings = sorted(members.loc[members["role"] == "ceiling", "source"].unique())
        for ceiling, source in product(ceilings, wide.columns.drop(ceilings)):
            both = wide[[source, ceiling]].dropna().set_axis(["own", "real"], axis=1)
            parts = [part for _, part in both.groupby(level="bits") if len(part) > 1]
            if parts:
                within = [_tau(part) for part in parts]
                rows.append(
                    {
                        **dict(zip(PLACE, place, strict=True)),
                        "ceiling": ceiling,
                        "source": source,
                        "precisions": len(parts),
                        "pairs": sum(len(part) * (len(part) - 1) // 2 for part in parts),
                        "within": float(np.mean(within)),
                        "points": len(both),
                        "overall": _tau(both),
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def _tau(values: pd.DataFrame) -> float:
    return stats.rank_correlation(values["own"], values["real"])


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and table of strings of every model and scheme, the best source first."""
    several = len(frame["ceiling"].unique()) > 1
    for (suite, task, _, _, scheme, preset, model, ceiling), rows in frame.groupby([*PLACE, "ceiling"], sort=True):
        best_first = rows.sort_values(["within", "overall", "source"], ascending=[False, False, True])
        shown = pd.DataFrame(
            {
                "within a precision": [tables.number(x, 2) for x in best_first["within"]],
                "precisions": best_first["precisions"].astype(str).tolist(),
                "pairs": best_first["pairs"].astype(str).tolist(),
                "overall": [tables.number(x, 2) for x in best_first["overall"]],
                "points": best_first["points"].astype(str).tolist(),
            },
            index=pd.Index(best_first["source"], name="source"),
        )
        against = f", against {ceiling}" if several else ""
        yield f"{model}, scheme {scheme}: {task} on {suite}, preset {preset}{against}", shown


def markdown(frame: pd.DataFrame) -> str:
    """A table per model and scheme."""
    parts = ["# Do synthetic images rank the calibrators as real images do?\n", f"{NOTES}\n"]
    for title, shown in split(frame):
        shown.columns = pd.MultiIndex.from_product([shown.columns, [""]])
        parts += [f"## {safe.markdown(title)}\n", *map(tables.markdown, tables.fitting(shown))]
    return "\n".join(parts)
