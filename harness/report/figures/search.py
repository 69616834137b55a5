"""How a search went, from the diagnostic `search`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from harness.report.diagnostics import diagnostic
from harness.report.figures.accuracy import COLOURS, DASHES, MARKERS, calibration
from harness.report.frame import CONTEXT
from harness.report.tables import bit_order
from harness.results.record import Record

KEY = [*CONTEXT, "model", "method", "scheme", "bits", "seed"]
COMMON = [*KEY, "calibration_images"]  # what the frames of diagnostics say of every record
# Diagnostic lists a value per cycle -> axis label.
CURVES = {
    "fitness": "best fitness (no unit), mean over\nlayers; lower is better",
    "diversity": "s. d. of scale multipliers (no unit)",
}


def measured(records: Iterable[Record], cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Record]]:
    """Coordinates, with the labels of the tables, and record of every measured cell."""
    by_key = {record.key: record for record in records}
    for row in cells[cells["status"] == "ok"].sort_values(KEY).to_dict("records"):
        if row["key"] in by_key:
            yield {name: row[name] for name in COMMON}, by_key[row["key"]]


def search_frame(records: Iterable[Record], cells: pd.DataFrame) -> pd.DataFrame:
    """One row per cycle of every search: `fitness`, `diversity`, and `refreshed` where new images came before it."""
    rows = []
    for coordinates, record in measured(records, cells):
        search = diagnostic(record, "search")
        cycles = search.get("cycles", {})
        refreshes = set(search.get("refreshes", ()))
        for cycle in range(max((len(cycles.get(name, ())) for name in CURVES), default=0)):
            values = {name: dict(enumerate(cycles.get(name, ()))).get(cycle, np.nan) for name in CURVES}
            rows.append({**coordinates, "cycle": cycle, **values, "refreshed": cycle in refreshes})
    return pd.DataFrame(rows, columns=[*COMMON, "cycle", *CURVES, "refreshed"])


def search_figure(frame: pd.DataFrame) -> Figure | None:
    """Fitness and diversity over the cycles of one model's searches: a row of panels per method, lines per bits."""
    rows = list(frame.groupby(["method", "scheme"]))
    if not rows:
        return None
    figure = Figure(figsize=(9, 0.3 + 2.7 * len(rows)), layout="constrained")
    widths = sorted(frame["bits"].unique(), key=bit_order)
    for axes, ((method, scheme), panel) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        for axis, (name, label) in zip(axes, CURVES.items(), strict=True):
            for place, bits in enumerate(widths):
                style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
                style["marker"] = MARKERS[place % len(MARKERS)]
                _lines(axis, panel[panel["bits"] == bits], name, bits, style)
            for cycle in panel.loc[panel["refreshed"], "cycle"].unique():
                axis.axvline(cycle - 0.5, color="#808080", linewidth=0.8, linestyle=":", zorder=0)
            if name == "fitness" and (panel[name] > 0).all():
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(LogFormatter())  # 0.6 instead of 6 x 10^-1
                axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            axis.set(xlabel="cycle, counted over all passes", ylabel=label)
            axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        amount = calibration(panel) + (" thin, their mean thick" if len(panel["seed"].unique()) > 1 else "")
        axes[0].set_title(f"{frame['model'].iloc[0]}, {method}, scheme {scheme}: {amount}", fontsize=9, loc="left")
        axes[1].set_title("dotted: images refreshed" if panel["refreshed"].any() else "", fontsize=9, loc="left")
        axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _lines(axis: Axes, curves: pd.DataFrame, name: str, bits: str, style: dict[str, Any]) -> None:
    if curves[name].notna().any():
        for _, of_seed in curves.groupby("seed"):
            axis.plot(of_seed["cycle"], of_seed[name], linewidth=0.6, alpha=0.6, **{**style, "marker": ""})
        axis.plot(curves.groupby("cycle")[name].mean(), linewidth=2, markersize=4, label=bits, **style)
