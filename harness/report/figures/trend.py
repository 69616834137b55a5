"""The history of pinned results as a figure: a panel per model and method, a line per precision, changes marked.

Lines show the change since their first run, since precisions differ by tens of points and regressions by tenths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.catalog import metrics
from harness.report.figures.accuracy import COLOURS, MARKERS
from harness.report.tables import bit_order
from harness.results.history import Row, changes, series

PANELS_A_ROW = 3
RUNS_NAMED = 9  # runs up to which each is named by its commit
SMALLEST = 0.5  # points that an axis shows at least either way, so that single images do not look like much
CAPTION = (
    "In brackets: the value of the first run. Ringed: the first run of a new level (binary segmentation). Dotted: the"
    " environment changed."
)


def trend_figure(frame: pd.DataFrame) -> Figure | None:
    """The series of a history; None if there are none.

    Args:
        frame: As `harness.results.history.read` has it.
    """
    panels: dict[tuple[str, str, str, int], list[list[Row]]] = {}
    for rows in series(frame):
        first = rows[0]
        panels.setdefault((first.suite, first.model, first.method, first.images), []).append(rows)
    if not panels:
        return None
    columns = min(PANELS_A_ROW, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 3.9 * columns, 0.7 + 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    runs = frame.drop_duplicates("run").set_index("run")
    for axis, ((suite, model, method, images), found) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, found)
        _name_runs(axis, runs)
        seeds = len({rows[0].seed for rows in found})
        count = f"{images:,} images, {seeds} seed{'s' * (seeds > 1)}"
        axis.set_title(f"{model} {method}\n{suite}, {count}", fontsize=9)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    return figure


def _draw(axis: Axes, found: Iterable[Sequence[Row]]) -> None:
    ordered = sorted(found, key=lambda rows: (bit_order(rows[0].bits), rows[0].scheme, rows[0].seed))
    schemes, seeds = {rows[0].scheme for rows in ordered}, {rows[0].seed for rows in ordered}
    metric = ordered[0][0].metric
    for place, rows in enumerate(ordered):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        first = rows[0]
        label = first.bits + f" {first.scheme}" * (len(schemes) > 1) + f" seed {first.seed}" * (len(seeds) > 1)
        label += f" ({first.value:.2f})"
        x, y = [row.run for row in rows], [row.value - first.value for row in rows]
        axis.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label)
        for change in changes(rows):
            after = change.after
            height = after.value - first.value
            axis.plot(after.run, height, "o", markersize=11, fillstyle="none", color=colour, markeredgewidth=1.4)
            difference = f"{after.value - change.before.value:+.2f}"
            axis.annotate(
                difference,
                (after.run, height),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=colour,
            )
    for last, following in _environments(ordered):
        axis.axvline((last + following) / 2, color="#808080", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_ylabel(f"change of {metrics.label(metric)}\nsince the first run (points)", fontsize=8)
    axis.margins(x=0.1, y=0.25)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -SMALLEST), max(high, SMALLEST))
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7)


def _environments(found: Iterable[Sequence[Row]]) -> set[tuple[int, int]]:
    """Neighbouring runs in different environments."""
    pairs: Mapping[tuple[int, int], bool] = {
        (a.run, b.run): a.environment != b.environment for rows in found for a, b in pairwise(rows)
    }
    return {pair for pair, differ in pairs.items() if differ}


def _name_runs(axis: Axes, runs: pd.DataFrame) -> None:
    if len(runs) <= RUNS_NAMED:
        names = [f"{run}\n{commit[:6]}" if commit else str(run) for run, commit in runs["commit"].items()]
        axis.set_xticks(list(runs.index), names, fontsize=5.5)
        axis.set_xlabel("run and commit", fontsize=8)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("run", fontsize=8)
