"""Accuracy against bits, as a matplotlib Figure made from the summary. No pyplot, so no state outside the figure."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.catalog import metrics
from harness.report import stats
from harness.report.frame import CONTEXT
from harness.report.tables import bit_order

# Okabe and Ito's colours for every kind of colour vision, without the yellow that vanishes on white. Markers and,
# from the eighth method on, dashes tell the methods apart without colour too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C510A")
GREY = "#808080"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", ":", "-.")
PANELS_A_ROW = 3
BITS_LABEL = "bits of weights (W) and activations (A)"
CAPTION = "Error bars: ± 1 standard deviation over seeds; 95 % Wilson interval of an accuracy where one seed ran."

Style = dict[str, Any]


def accuracy_figure(summary: pd.DataFrame) -> Figure | None:
    """One panel per model and scheme: mean accuracy of every method at every precision. None without measurements."""
    measured = summary[summary["status"] == "ok"]
    quantized = measured[measured["role"] != "float"]
    if quantized.empty:
        return None
    styles = method_styles(quantized[["method", "role"]].drop_duplicates().sort_values("method"))
    panels = [panel for _, panel in measured.groupby([*CONTEXT, "scheme", "model"]) if (panel["role"] != "float").any()]
    columns = 2 if len(panels) == 4 else min(PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    size = (2.2 + 3.6 * columns, max(0.9 + 3.1 * rows, 0.6 + 0.205 * len(styles)))  # as high as the legend
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, styles)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    handles = [Line2D([], [], label=method, **style) for method, style in styles.items()]
    float_line = Line2D([], [], color="black", linewidth=1, linestyle=(0, (5, 3)), label="float")
    figure.legend(handles=[float_line, *handles], loc="outside right upper", frameon=False, fontsize=9)
    return figure


def method_styles(methods: pd.DataFrame) -> dict[str, Style]:
    """How each method is drawn, the same in all panels; floor and ceiling step back in grey."""
    styles: dict[str, Style] = {}
    coloured = 0
    for place, (method, role) in enumerate(methods[["method", "role"]].itertuples(index=False)):
        if role == "method":
            colour, dash = COLOURS[coloured % len(COLOURS)], DASHES[coloured // len(COLOURS) % len(DASHES)]
            coloured += 1
        else:
            colour, dash = GREY, "--" if role == "ceiling" else ":"
        marker = MARKERS[place % len(MARKERS)]
        size = 8.5 if marker == "*" else 5.5  # a star looks smaller than it is
        styles[method] = {"color": colour, "linestyle": dash, "marker": marker, "markersize": size, "linewidth": 1.2}
    return styles


def _draw(axis: Axes, panel: pd.DataFrame, styles: dict[str, Style]) -> None:
    quantized = panel[panel["role"] != "float"]
    bits = sorted(quantized["bits"].unique(), key=bit_order)
    methods = [method for method in styles if method in set(quantized["method"])]
    spread = min(0.12, 0.6 / len(methods))  # methods stand side by side, so that error bars do not cover each other
    for place, method in enumerate(methods):
        points = quantized[quantized["method"] == method]
        x = points["bits"].map(bits.index).astype(float) + spread * (place - (len(methods) - 1) / 2)
        errors = np.array([_error(row) for row in points.to_dict("records")]).T
        drawn = pd.DataFrame({"x": x, "y": points["accuracy"], "below": errors[0], "above": errors[1]}).sort_values("x")
        # A line says what bits alone cost, so it joins no two kinds of precision.
        for _, alike in drawn.groupby(points["bits"].map(_kind)):
            spans = alike[["below", "above"]].to_numpy().T
            axis.errorbar(alike["x"], alike["y"], yerr=spans, capsize=2.5, elinewidth=1, alpha=0.9, **styles[method])
    for value in panel.loc[panel["role"] == "float", "accuracy"].unique():
        axis.axhline(value, color="black", linewidth=1, linestyle=(0, (5, 3)), zorder=0)
    metric = str(panel["metric"].iloc[0])
    axis.set(xticks=range(len(bits)), xticklabels=bits, xlim=(-0.6, len(bits) - 0.4))
    axis.set(xlabel=BITS_LABEL, ylabel=metrics.title(metric))
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    first = panel.iloc[0]
    title = f"{first['model']}, scheme {first['scheme']}\n{first['suite']}, {amount(quantized)}"
    axis.set_title(title, fontsize=10)


def _kind(bits: str) -> str:
    """What precisions have in common that differ in their bits alone: `W4A8` and `W4A4`, not `MP4.5` or a format."""
    return bits if "MX" in bits else re.sub(r"\d+(?:\.\d+)?", "", bits)


def _error(row: dict[Any, Any]) -> tuple[float, float]:
    """Length of the error bar below and above, in points."""
    if row["seeds"] > 1:
        return row["accuracy_sd"], row["accuracy_sd"]
    if not row["per_image"]:
        return 0.0, 0.0
    share = row["accuracy"] / 100
    low, high = stats.wilson(round(share * row["images"]), int(row["images"]))
    return 100 * (share - low), 100 * (high - share)


def amount(points: pd.DataFrame) -> str:
    """How many images and seeds are behind the rows of a summary: `2,000 images, 3 seeds`."""
    images = points["images"].max()
    return (f"{images:,.0f} images, " if images > 0 else "") + seeds(points)


def calibration(cells: pd.DataFrame) -> str:
    """How many calibration images and seeds are behind rows that have one each: `32 calibration images, 3 seeds`."""
    images = cells["calibration_images"].dropna().astype(int)
    number = cells["seed"].nunique()
    known = f"{_span(images.min(), images.max())} calibration images, " if len(images) else ""
    return known + f"{number} seed" + "s" * (number > 1)


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def seeds(points: pd.DataFrame) -> str:
    """How many seeds the rows of a summary have: `3 seeds`, `1 to 3 seeds`."""
    high = points["seeds"].max()
    return f"{_span(points['seeds'].min(), high)} seed" + "s" * bool(high != 1)
