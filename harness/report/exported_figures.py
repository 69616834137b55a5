"""Accuracy of exported files against what they cost: measured latency, and their size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.catalog import metrics
from harness.report.figures import Style, method_styles
from harness.report.pareto_figures import front

# Column of the frame -> that of the float model, axis label.
COSTS = {
    "cpu_ms": ("float_cpu_ms", "CPU time of an image, one thread (ms)"),
    "mib": ("float_mib", "size of the file (MiB)"),
}
CAPTION = "Line: files that no other beats in accuracy at the same cost or less. Star: float32 in the same runtime."


def exported_figure(frame: pd.DataFrame) -> Figure | None:
    """Both costs of one model, a row of panels per suite, scheme and runtime; None without a file that is right."""
    shown = frame[(frame["verdict"] != "wrong") & frame["real"].notna() & frame["bytes"].notna()].copy()
    if shown.empty:
        return None
    shown["mib"], shown["float_mib"] = shown["bytes"] / 2**20, shown["float_bytes"] / 2**20
    roles = shown[["method"]].drop_duplicates().sort_values("method").assign(role="method")
    styles = method_styles(roles)
    rows = list(shown.groupby(["suite", "scheme", "runtime"], sort=True))
    figure = Figure(figsize=(10.5, 0.9 + 3.4 * len(rows)), layout="constrained")
    for axes, ((suite, scheme, runtime), points) in zip(
        figure.subplots(len(rows), 2, squeeze=False), rows, strict=True
    ):
        for axis, (cost, (plain, label)) in zip(axes, COSTS.items(), strict=True):
            _draw(axis, points[points[cost].notna()], cost, plain, styles)
            axis.set(xlabel=label, ylabel=metrics.title(str(points["metric"].iloc[0])))
        title = f"{points['model'].iloc[0]}, scheme {scheme}, {suite}, {runtime}\n{points['images'].max():,} images"
        axes[0].set_title(title, fontsize=10, loc="left")
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    handles = [Line2D([], [], label=name, **{**style, "linestyle": ""}) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _draw(axis: Axes, points: pd.DataFrame, cost: str, plain: str, styles: dict[str, Style]) -> None:
    for method, style in styles.items():
        of_method = points[points["method"] == method]
        axis.plot(of_method[cost], of_method["real"], alpha=0.9, **{**style, "linestyle": ""})
    axis.plot(points[plain], points["float"], marker="*", color="black", linestyle="", markersize=9)
    ordered = points.sort_values([cost, "real", "method"])
    best = ordered[front(np.asarray(ordered[cost], np.float64), np.asarray(ordered["real"], np.float64))]
    axis.plot(best[cost], best["real"], color="#444444", linewidth=1, drawstyle="steps-post", zorder=0)
    for row in best.drop_duplicates("bits", keep="last").itertuples():
        place = (getattr(row, cost), row.real)
        axis.annotate(str(row.bits), place, xytext=(4, 5), textcoords="offset points", fontsize=8, color="#444444")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(0.1)
    axis.spines[["top", "right"]].set_visible(False)
