"""Patch similarity of every method's images: densities, neighbours, maps. Sees numbers and images, no networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from harness.report.figures.accuracy import Style, method_styles

SHOWN = 2  # images of a method beside their maps
LEAST_DENSITY = 0.01  # lower end of the logarithmic axis, which the spike of noise near 1 would flatten else


@dataclass(frozen=True)
class Similarity:
    """What is drawn of one set of images; arrays as in `methods.core.diagnostics.PatchSimilarity`.

    `methods` names every method that has these images, `role` is the first one's, `images` are (n, height, width,
    channels) uint8.
    """

    methods: tuple[str, ...]
    role: str
    images: NDArray[np.uint8]
    blocks: tuple[str, ...]
    edges: NDArray[np.float64]
    densities: NDArray[np.float64]
    entropies: NDArray[np.float64]
    neighbours: NDArray[np.float64]
    centre: tuple[int, int]
    maps: NDArray[np.float64]

    @property
    def label(self) -> str:
        """The methods in a line."""
        return ", ".join(self.methods)


def similarity_frame(results: Sequence[Similarity]) -> pd.DataFrame:
    """One row per set of images and block, and a row of their means: entropy in nats, neighbours' similarity."""
    rows = []
    for result in results:
        fixed = {"method": result.label, "images": len(result.images)}
        for place, block in enumerate(result.blocks):
            values = {"entropy": result.entropies[place], "neighbours": result.neighbours[place]}
            rows.append({**fixed, "block": block, **values})
        means = {"entropy": result.entropies.mean(), "neighbours": result.neighbours.mean()}
        rows.append({**fixed, "block": "mean", **means})
    return pd.DataFrame(rows, columns=["method", "images", "block", "entropy", "neighbours"])


def similarity_figure(title: str, results: Sequence[Similarity]) -> Figure:
    """Left the density of similarities, mean over blocks; right, per block, how much more neighbours are alike."""
    figure = Figure(figsize=(10.5, 4.2 + 0.2 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result, style in zip(results, _line_styles(results), strict=True):
        centres = (result.edges[:-1] + result.edges[1:]) / 2
        label = f"{result.label} (n = {len(result.images)}, entropy {result.entropies.mean():.2f} nats)"
        line = {**style, "markersize": 4, "linewidth": 1.4}
        left.plot(centres, result.densities.mean(0), label=label, **{**line, "markevery": 4})
        right.plot(range(1, len(result.blocks) + 1), result.neighbours, **line)
    left.set(xlabel="cosine similarity of two patches", ylabel="density (mean over blocks)", yscale="log")
    left.set(xlim=(-1, 1), ylim=(LEAST_DENSITY, None))
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="block", ylabel="similarity to the 8 neighbours\nless that to all patches")
    right.set_xticks(range(1, max(len(result.blocks) for result in results) + 1))
    for axis in (left, right):
        axis.grid(color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _line_styles(results: Sequence[Similarity]) -> list[Style]:
    styles = method_styles(pd.DataFrame([(r.label, r.role) for r in results], columns=["method", "role"]))
    return [styles[result.label] for result in results]


def maps_figure(title: str, results: Sequence[Similarity]) -> Figure:
    """One row per set of images: two images, each beside the similarity of its patches to the framed centre patch."""
    size = (2.4 + 1.5 * 2 * SHOWN + 0.9, 0.5 + 1.6 * len(results))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12))  # names stand outside of the axes
    axes = figure.subplots(len(results), 2 * SHOWN, squeeze=False)
    low = min(float(result.maps[:SHOWN].min()) for result in results)
    drawn = None
    for row, result in zip(axes, results, strict=True):
        height, width = result.images.shape[1:3]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        for place, (image, values) in enumerate(zip(result.images[:SHOWN], result.maps[:SHOWN], strict=True)):
            shown = image.repeat(3, axis=2) if image.shape[2] == 1 else image
            row[2 * place].imshow(shown, interpolation="nearest" if height < 100 else "antialiased")
            axis = row[2 * place + 1]
            drawn = axis.imshow(values, vmin=low, vmax=1, cmap="cividis", interpolation="nearest", extent=extent)
            cell = height / values.shape[0], width / values.shape[1]
            corner = result.centre[1] * cell[1] - 0.5, result.centre[0] * cell[0] - 0.5
            for framed in (row[2 * place], axis):
                framed.add_patch(Rectangle(corner, cell[1], cell[0], fill=False, edgecolor="#D55E00", linewidth=1.5))
        for axis in row:
            axis.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel("\n".join(result.methods), rotation=0, ha="right", va="center", fontsize=9)
    number = max(len(result.images[:SHOWN]) for result in results)
    figure.suptitle(f"{title}, the first {number}", fontsize=10)
    if drawn is not None:
        figure.colorbar(
            drawn, ax=axes, label="cosine similarity to the framed patch", shrink=min(1.0, 3 / len(results))
        )
    return figure
