"""Every figure of a report, by kind and model, drawn when asked for: for the files of a report and for its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.report.figures.accuracy import accuracy_figure
from harness.report.figures.cross import cross_figure
from harness.report.figures.exported import exported_figure
from harness.report.figures.gallery import MOSAIC_IMAGES, iterations_figure, one_precision
from harness.report.figures.pareto import pareto_figure
from harness.report.figures.ranges import range_figure
from harness.report.figures.search import search_figure, search_frame
from harness.report.figures.stages import stage_figure
from harness.report.figures.widths import bits_figure, bits_frame, sensitivity_figure, sensitivity_frame
from harness.report.frame import CONTEXT
from harness.report.results import Results

Snapshots = Callable[[str], Mapping[int, NDArray[np.uint8]]]  # images over the steps of a cell, by its key
Draw = Callable[[pd.DataFrame], Figure | None]
# Kind -> what it shows; the order is that of the page.
KINDS = {
    "accuracy": "Accuracy against bits",
    "pareto": "Accuracy against size and bit operations",
    "exported": "Exported models: accuracy against measured time and size of the file",
    "cross": "Image sources × calibrators",
    "bits": "Weight bits of each layer in mixed precision",
    "sensitivity": "Sensitivity of each layer",
    "ranges": "Activation ranges against those of real images, site by site",
    "search": "Fitness and diversity over the search",
    "stages": "Time of each stage",
    "iterations": "Images over the iterations of their synthesis",
}


@dataclass(frozen=True)
class Picture:
    """One figure: `draw` makes it anew each time, or gives None if there is nothing to show. `model` is empty if it
    shows all of them.
    """

    kind: str
    model: str
    draw: Callable[[], Figure | None]


def pictures(results: Results, snapshots: Snapshots) -> Iterator[Picture]:
    """Figures of `results`, in the order of KINDS and of the models' names."""
    records, cells, summary = results.records, results.cells, results.summary
    frames: Mapping[str, tuple[pd.DataFrame, Draw]] = {
        "pareto": (summary, pareto_figure),
        "exported": (results.exported, exported_figure),
        "cross": (results.crossed, cross_figure),
        "bits": (bits_frame(records, cells), bits_figure),
        "sensitivity": (sensitivity_frame(records, cells), sensitivity_figure),
        "ranges": (results.ranges, range_figure),
        "search": (search_frame(records, cells), search_figure),
        "stages": (summary, stage_figure),
    }
    for kind in KINDS:
        if kind == "accuracy":
            yield Picture(kind, "", partial(accuracy_figure, summary))
        elif kind == "iterations":
            yield from _iterations(cells, snapshots)
        else:
            frame, draw = frames[kind]
            own_contexts = kind in ("bits", "sensitivity", "search")
            split = _one_context if own_contexts else _one_model
            for model, rows in split(frame):
                yield Picture(kind, model, partial(draw, rows))


def _one_model(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for model, rows in frame.groupby("model", sort=True):
        yield str(model), rows


def _one_context(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """As `_one_model`, for figures that have a place for one record per method, scheme, precision and seed: what was
    measured on other data or images is a model of its own, whose name says on which.
    """
    for model, of_model in frame.groupby("model", sort=True):
        several = [name for name in CONTEXT if len(of_model[name].unique()) > 1]
        if not several:
            yield str(model), of_model
            continue
        for values, rows in of_model.groupby(several, sort=True):
            where = ", ".join(f"{name} {value}" for name, value in zip(several, values, strict=True))
            name = f"{model} ({where})"
            yield name, rows.assign(model=name)


def _iterations(cells: pd.DataFrame, snapshots: Snapshots) -> Iterator[Picture]:
    found = {key: steps for key in cells.loc[cells["status"] == "ok", "key"] if (steps := snapshots(key))}
    for model, of_model in cells[cells["key"].isin(found)].groupby("model", sort=True):
        shown = one_precision(of_model)
        first = shown.iloc[0]
        rows = [(str(method), found[key]) for method, key in zip(shown["method"], shown["key"], strict=True)]
        number = max(len(images[:MOSAIC_IMAGES]) for _, steps in rows for images in steps.values())
        where = f"{first['bits']}, scheme {first['scheme']}, seed {first['seed']}, the first {number}"
        title = f"Images over the iterations, {model} ({where})"
        yield Picture("iterations", str(model), partial(iterations_figure, title, rows))
