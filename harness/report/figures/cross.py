"""The cross table as a heat map: a panel per precision, with the same sources and calibrators in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from harness.catalog import metrics
from harness.report.figures.accuracy import seeds
from harness.report.sections.cross import order, split
from harness.report.verdicts import NONE, mark, marked

SPAN = 5.0  # points that the colours of a panel cover at least, so that noise does not look like a difference
COLOURS = colormaps["cividis"]  # for every kind of colour vision, and grey in print
EMPTY = "#E6E6E6"
CAPTION = "bold: highest data-free mean of its column; =: another run could reverse the difference; ?: no verdict"


def cross_figure(frame: pd.DataFrame) -> Figure | None:
    """Mean accuracy of every source with every calibrator, from the rows of one model; None without measurements."""
    panels = [(title, rows) for title, rows in split(frame) if rows["accuracy"].notna().any()]
    if not panels:
        return None
    sources, calibrators = order(frame)
    size = (3.4 + 0.62 * len(calibrators), 0.4 + len(panels) * (1.3 + 0.36 * len(sources)))
    figure = Figure(figsize=(max(size[0], 7.5), size[1]), layout="constrained")  # as wide as its titles
    for axis, (title, rows) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        top = rows["accuracy"].max()
        norm = Normalize(min(rows["accuracy"].min(), top - SPAN), top)
        _draw(axis, rows, norm, sources, calibrators)
        axis.set_title(f"{title}\n{seeds(rows[rows['seeds'] > 0])}", fontsize=9, loc="left")
        metric = str(rows["metric"].dropna().iloc[0])
        figure.colorbar(axis.images[0], ax=axis, label=metrics.title(metric), shrink=0.9)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    return figure


def _draw(axis: Axes, rows: pd.DataFrame, norm: Normalize, sources: list[str], calibrators: list[str]) -> None:
    found = {(row["source"], row["calibrator"]): row for row in rows.to_dict("records")}
    values = [[found.get((s, c), {}).get("accuracy", np.nan) for c in calibrators] for s in sources]
    axis.set_facecolor(EMPTY)
    axis.imshow(np.ma.masked_invalid(values), cmap=COLOURS, norm=norm, aspect="auto")
    for y, source in enumerate(sources):
        for x, calibrator in enumerate(calibrators):
            row = found.get((source, calibrator), {})
            light = norm(row.get("accuracy", np.nan)) >= 0.5 or row.get("status") != "ok"
            style: dict[str, Any] = {"color": "black" if light else "white", "linespacing": 1.1, "fontsize": 7.5}
            style["fontweight"] = "bold" if row.get("best") else "normal"
            axis.text(x, y, _text(row), ha="center", va="center", **style)
    axis.set_xlabel("calibrator", fontsize=9)
    axis.set_ylabel("image source", fontsize=9)
    axis.set_xticks(range(len(calibrators)), calibrators, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(sources)), sources, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _text(row: dict[Any, Any]) -> str:
    """Mean with its mark over the spread, or why there is none."""
    if row.get("status") != "ok":
        return str(row.get("status", NONE))
    spread = f"\n±{row['accuracy_sd']:.1f}" if row["seeds"] > 1 else ""
    return marked(f"{row['accuracy']:.1f}", row["verified"]) + mark(row) + spread
