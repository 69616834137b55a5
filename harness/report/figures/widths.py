"""Mixed precision: the bits that each layer got, and what each layer loses at every width."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from harness.report.diagnostics import diagnostic
from harness.report.figures.accuracy import COLOURS, calibration
from harness.report.figures.search import COMMON, measured
from harness.results.record import Record

MIXED = "MP"  # how the bits of a mixed-precision cell begin
WIDTHS = range(2, 9)


def bits_frame(records: Iterable[Record], cells: pd.DataFrame) -> pd.DataFrame:
    """One row per layer of every mixed-precision record: its weight's number of values and `width` in bits."""
    rows = [
        {**coordinates, "place": place, "layer": layer.name, "size": layer.size, "width": layer.bits}
        for coordinates, record in measured(records, cells)
        if record.cell.bits.startswith(MIXED) and record.quantization
        for place, layer in enumerate(record.quantization.layers)
    ]
    return pd.DataFrame(rows, columns=[*COMMON, "place", "layer", "size", "width"])


def bits_figure(frame: pd.DataFrame) -> Figure | None:
    """Bits of every layer of one model: a column a mixed-precision record, with its mean width over parameters."""
    columns = list(frame.groupby(["method", "scheme", "bits", "seed"]))
    if not columns:
        return None
    layers = frame.drop_duplicates("layer").sort_values("place")["layer"].tolist()
    widths = np.stack([column.set_index("layer")["width"].reindex(layers) for _, column in columns], axis=1)
    names = [
        f"{method}\n{scheme}\n{bits}, seed {seed}\nmean {np.average(column['width'], weights=column['size']):.2f}"
        for (method, scheme, bits, seed), column in columns
    ]
    figure = Figure(figsize=(3.6 + 0.95 * len(columns), 1.6 + 0.19 * len(layers)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(widths, cmap="cividis", vmin=WIDTHS[0] - 0.5, vmax=WIDTHS[-1] + 0.5, aspect="auto")
    for (row, column), width in np.ndenumerate(widths):
        if np.isfinite(width):
            colour = "white" if width < 5 else "black"
            axis.text(column, row, f"{width:g}", ha="center", va="center", fontsize=7, color=colour)
    _label(axis, names, layers, f"{frame['model'].iloc[0]}: weight bits of each layer\n{calibration(frame)}")
    axis.set(xlabel="method, scheme, budget and seed;\nmean over parameters (bits)", ylabel="layer, in execution order")
    figure.colorbar(image, ax=axis, label="weight width (bits)", ticks=list(WIDTHS), shrink=0.6)
    return figure


def sensitivity_frame(records: Iterable[Record], cells: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and width of every record with a sensitivity: `fitness` with this layer alone at that width,
    and its `excess` over the same layer's at the greatest width.
    """
    rows = []
    for coordinates, record in measured(records, cells):
        found = diagnostic(record, "sensitivity")
        for place, (layer, fitness) in enumerate(found.get("layers", {}).items()):
            known = {"place": place, "layer": layer, "size": found.get("sizes", {}).get(layer, np.nan)}
            least = fitness[int(np.argmax(found["widths"]))]
            rows += [
                {**coordinates, **known, "width": width, "fitness": value, "excess": value - least}
                for width, value in zip(found["widths"], fitness, strict=True)
            ]
    return pd.DataFrame(rows, columns=[*COMMON, "place", "layer", "size", "width", "fitness", "excess"])


def sensitivity_figure(frame: pd.DataFrame) -> Figure | None:
    """What every layer of one model loses at every width, the mean over records, beside the layer's size.

    The excess is shown, since levels of fitness differ between layers by more than the widths change them.
    """
    panels = list(frame.groupby(["method", "scheme"]))
    if not panels:
        return None
    layers = frame.drop_duplicates("layer").sort_values("place")
    figure = Figure(figsize=(3.5 + 4.5 * len(panels), 1.2 + 0.19 * len(layers)), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, squeeze=False, sharey=True, width_ratios=[*([3.5] * len(panels)), 1])[0]
    for axis, ((method, scheme), panel) in zip(axes, panels, strict=False):
        table = panel.pivot_table(index="layer", columns="width", values="excess", aggfunc="mean")
        most = float(table.to_numpy().max())
        # Three decades; what is smaller, or no loss at all, has the lowest colour.
        norm = LogNorm(most / 1000, most, clip=True) if most > 0 else None
        image = axis.imshow(table.reindex(layers["layer"]), cmap="viridis", norm=norm, aspect="auto")
        number = panel.drop_duplicates(["bits", "seed"]).shape[0]
        title = f"{frame['model'].iloc[0]}, {method}, {scheme}: mean of {number} record{'s' * (number > 1)}"
        title += f"\n{calibration(panel)}"
        _label(axis, [str(width) for width in table.columns], layers["layer"].tolist(), title)
        axis.set_xlabel("width of this layer alone (bits)")
        figure.colorbar(
            image,
            ax=axis,
            label=f"fitness above that at {table.columns.max()} bits (no unit)",
            extend="min",
            shrink=0.6,
        )
    axes[-1].barh(range(len(layers)), layers["size"] / 1000, color=COLOURS[0])
    axes[-1].set(xlabel="size (thousand\nvalues)")
    axes[0].set_ylabel("layer, in execution order")
    axes[-1].spines[["top", "right"]].set_visible(False)
    return figure


def _label(axis: Axes, columns: list[str], rows: list[str], title: str) -> None:
    axis.set_xticks(range(len(columns)), columns, fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.set_title(title, fontsize=9)
