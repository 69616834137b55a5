"""Accuracy of exported files against what they cost: measured latency, and their size."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from harness.catalog import metrics
from harness.report.figures.accuracy import method_styles
from harness.report.figures.pareto import draw_points, finish

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
            known = points[points[cost].notna()]
            draw_points(axis, known, cost, "real", styles=styles, judged=known["real"])
            axis.plot(known[plain], known["float"], marker="*", color="black", linestyle="", markersize=9)
            axis.set(xlabel=label, ylabel=metrics.title(str(points["metric"].iloc[0])))
        title = f"{points['model'].iloc[0]}, scheme {scheme}, {suite}, {runtime}\n{points['images'].max():,} images"
        axes[0].set_title(title, fontsize=10, loc="left")
    finish(figure, CAPTION, styles)
    return figure
