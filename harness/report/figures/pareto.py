"""Accuracy against what a model costs, its size and its bit operations: which methods and precisions are worth it?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from harness.catalog import metrics
from harness.report.figures.accuracy import Style, amount, method_styles
from harness.report.frame import CONTEXT
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
            shown = points[points[cost].notna()]
            judged = checked(shown[shown["role"].isin(DATA_FREE)])
            draw_points(axis, shown, cost, "accuracy", styles=styles, judged=judged)
            for value in reference.unique():
                axis.axhline(value, color="black", linewidth=1, linestyle=(0, (5, 3)), zorder=0)
            metric = str(points["metric"].iloc[0])
            axis.set(xlabel=label, ylabel=metrics.title(metric))
        first = points.iloc[0]
        title = f"{first['model']}, scheme {first['scheme']}, {first['suite']}\n{amount(points)}"
        axes[0].set_title(title, fontsize=10, loc="left")
    finish(figure, CAPTION, styles)
    return figure


def finish(figure: Figure, caption: str, styles: Mapping[str, Style]) -> None:
    """Write below a figure of `draw_points` what its line is, and beside it which marker is which method."""
    figure.supxlabel(caption, fontsize=8, color="#444444")
    handles = [Line2D([], [], label=name, **{**style, "linestyle": ""}) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def draw_points(
    axis: Axes,
    points: pd.DataFrame,
    cost: str,
    accuracy: str,
    *,
    styles: Mapping[str, Style],
    judged: pd.Series[float],
) -> None:
    """Draw each method's points, and a line through the best of those that are judged.

    Args:
        axis: Where.
        points: Rows with a `method` and `bits`.
        cost: Column of the horizontal axis.
        accuracy: Column of the vertical axis.
        styles: How each method is drawn.
        judged: What the line goes by; its index says which rows take part, a missing value that one is never best.
    """
    for method, style in styles.items():
        of_method = points[points["method"] == method]
        axis.plot(of_method[cost], of_method[accuracy], alpha=0.9, **{**style, "linestyle": ""})
    taking_part = points.loc[judged.index].sort_values([cost, accuracy, "method"])
    values = np.asarray(judged.loc[taking_part.index], np.float64)
    best = taking_part[front(np.asarray(taking_part[cost], np.float64), values)]
    axis.plot(best[cost], best[accuracy], color="#444444", linewidth=1, drawstyle="steps-post", zorder=0)
    # One label per precision, at its cheapest and best point: several methods often share a place.
    for row in best.drop_duplicates("bits", keep="last").to_dict("records"):
        place = (row[cost], row[accuracy])
        axis.annotate(row["bits"], place, xytext=(4, 5), textcoords="offset points", fontsize=8, color="#444444")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(0.1)
    axis.spines[["top", "right"]].set_visible(False)
