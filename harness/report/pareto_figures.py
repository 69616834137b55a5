"""Accuracy against what a model costs, its size and its bit operations: which methods and precisions are worth it?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from harness.catalog import metrics
from harness.report.figures import Style, amount, method_styles
from harness.report.frame import CONTEXT
from harness.report.tables import bit_order
from harness.report.verdicts import checked

# Column of the summary -> axis label.
COSTS = {"weight_mib": "size of all parameters (MiB)", "gbops": "bit operations of an image (10⁹ BOPs)"}
CAPTION = "Line: data-free results that no other beats in accuracy at the same cost or less. Dashed: float model."
DATA_FREE = ("method", "floor")


def front(cost: NDArray[np.float64], accuracy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other dominates, by costing at most as much and being at least as accurate, one of both strictly.

    Equal points do not dominate each other; a point without cost or accuracy is never on the front.
    """
    known = np.isfinite(cost) & np.isfinite(accuracy)
    as_cheap, as_good = cost[None, :] <= cost[:, None], accuracy[None, :] >= accuracy[:, None]
    better = (cost[None, :] < cost[:, None]) | (accuracy[None, :] > accuracy[:, None])
    dominated = np.asarray((as_cheap & as_good & better & known[None, :]).any(axis=1))
    return np.asarray(known & ~dominated)


def pareto_figure(summary: pd.DataFrame) -> Figure | None:
    """Accuracy of one model against both costs, a row of panels per suite and scheme; None without a cost."""
    measured = summary[summary["status"] == "ok"]
    known = measured[(measured["role"] != "float") & measured[list(COSTS)].notna().any(axis=1)]
    if known.empty:
        return None
    styles = method_styles(known[["method", "role"]].drop_duplicates().sort_values("method"))
    rows = list(known.groupby([*CONTEXT, "scheme"], sort=True))
    height = max(0.9 + 3.4 * len(rows), 0.8 + 0.205 * len(styles))  # as high as the legend
    figure = Figure(figsize=(10.5, height), layout="constrained")
    for axes, (_, points) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        same = (measured[CONTEXT] == points[CONTEXT].iloc[0]).all(axis=1)
        reference = measured.loc[same & (measured["role"] == "float"), "accuracy"]
        for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
            _draw(axis, points[points[cost].notna()], cost, styles)
            for value in reference.unique():
                axis.axhline(value, color="black", linewidth=1, linestyle=(0, (5, 3)), zorder=0)
            metric = str(points["metric"].iloc[0])
            axis.set(xlabel=label, ylabel=metrics.title(metric))
        first = points.iloc[0]
        title = f"{first['model']}, scheme {first['scheme']}, {first['suite']}\n{amount(points)}"
        axes[0].set_title(title, fontsize=10, loc="left")
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    handles = [Line2D([], [], label=name, **{**style, "linestyle": ""}) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _draw(axis: Axes, points: pd.DataFrame, cost: str, styles: dict[str, Style]) -> None:
    for method, style in styles.items():
        of_method = points[points["method"] == method]
        axis.plot(of_method[cost], of_method["accuracy"], alpha=0.9, **{**style, "linestyle": ""})
    free = points[points["role"].isin(DATA_FREE)].sort_values([cost, "accuracy", "method"])
    best = free[front(np.asarray(free[cost], np.float64), np.asarray(checked(free), np.float64))]
    axis.plot(best[cost], best["accuracy"], color="#444444", linewidth=1, drawstyle="steps-post", zorder=0)
    # One label a precision, at its cheapest and best point: several methods often share a place.
    for bits in sorted(best["bits"].unique(), key=bit_order):
        at = best[best["bits"] == bits].iloc[-1]
        axis.annotate(
            bits, (at[cost], at["accuracy"]), xytext=(4, 5), textcoords="offset points", fontsize=8, color="#444444"
        )
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(0.1)
    axis.spines[["top", "right"]].set_visible(False)
