"""Where the time goes: seconds of every stage of every method, as stacked bars."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.report.figures.accuracy import COLOURS, seeds
from harness.report.frame import STAGES
from harness.report.tables import bit_order, method_labels

# Stage -> how its part of a bar is drawn: hatches tell them apart without colour.
PARTS = dict(zip((*STAGES, "other"), zip(COLOURS, ("", "//", "..", "\\\\", "xx", "--"), strict=False), strict=True))
VISIBLE = 0.002  # of the longest bar; what is less is not named in the legend
CAPTION = (
    "Mean over the precisions and seeds that each method was measured with. A stage that was reused counts the seconds"
    " that it took when it ran."
)


def stage_frame(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per model, scheme and method that took time: seconds of each stage, what is left as `other`, and `total`.

    Means over the precisions that were measured, each being a mean over seeds; sorted by total within model and scheme.
    """
    timed = summary[(summary["status"] == "ok") & (summary["role"] != "float") & summary["total_s"].notna()].copy()
    for stage in STAGES:
        timed[stage] = timed[f"{stage}_s"].fillna(0.0).astype(float)
    timed["other"] = (timed["total_s"] - timed[list(STAGES)].sum(axis=1)).clip(lower=0)
    timed["label"] = method_labels(timed)
    keys = ["model", "scheme", "method", "label"]
    means = timed.groupby(keys, sort=True)[[*PARTS, "total_s"]].mean().reset_index()
    # Many values of `bits` and `seeds` stand behind a bar; the figure's title says which.
    return (
        means.rename(columns={"total_s": "total"})
        .sort_values(["model", "scheme", "total", "method"])
        .reset_index(drop=True)
    )


def stage_figure(summary: pd.DataFrame) -> Figure | None:
    """Stacked bars of one model, a panel per scheme; None if no stage took time."""
    frame = stage_frame(summary)
    if frame.empty:
        return None
    panels = list(frame.groupby("scheme", sort=True))
    heights = [0.9 + 0.26 * len(panel) for _, panel in panels]
    figure = Figure(figsize=(10.5, 0.7 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (scheme, panel) in zip(axes, panels, strict=True):
        measured = summary[(summary["scheme"] == scheme) & (summary["role"] != "float") & (summary["status"] == "ok")]
        _draw(axis, panel)
        bits = ", ".join(sorted(measured["bits"].unique(), key=bit_order))
        axis.set_title(f"{panel['model'].iloc[0]}, scheme {scheme}: {bits}; {seeds(measured)}", fontsize=9, loc="left")
    used = [name for name in PARTS if (frame[name] > VISIBLE * frame["total"].max()).any()]
    handles = [Patch(facecolor=PARTS[n][0], hatch=PARTS[n][1], edgecolor="white", label=n) for n in used]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    return figure


def _draw(axis: Axes, panel: pd.DataFrame) -> None:
    places, left = np.arange(len(panel)), np.zeros(len(panel))
    for name, (colour, hatch) in PARTS.items():
        seconds = panel[name].to_numpy(dtype=float)
        axis.barh(places, seconds, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        left += seconds
    for place, total in enumerate(left):
        axis.text(total, place, f" {total:,.1f} s", va="center", fontsize=8)
    axis.set_yticks(places, panel["label"], fontsize=8)
    axis.set_xlabel("time of quantizing (s); neither loading nor evaluating")
    axis.set_xlim(0, max(1.12 * left.max(), 0.1))
    axis.invert_yaxis()
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
