"""What models say of a few evaluation images: ground truth, the float model and every method, row by row."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.catalog import metrics
from harness.report.figures.gallery import one_precision
from harness.report.frame import CONTEXT

TRUTH, PREDICTION = "truth", "prediction"
COLUMNS = 4
Pictures = Mapping[str, NDArray[np.uint8]]  # kind -> drawn images (n, height, width, 3)
_INCH = 100  # pixels
_LABEL, _TITLE, _GAP = 1.8, 0.4, 0.06  # inches
_LETTERS = 20  # that fit beside the images


def prediction_figures(
    cells: pd.DataFrame, pictures: Callable[[str], Pictures]
) -> Iterator[tuple[tuple[str, ...], Figure]]:
    """One figure a task, model and scheme whose cells have pictures, with names for its file.

    Methods are shown at one precision, `gallery.one_precision`, and at the first seed.

    Args:
        cells: as `cells_frame` makes them.
        pictures: those of a cell, by its key.
    """
    measured = cells[cells["status"] == "ok"]
    for (task, model), of_model in measured.groupby(["task", "model"], sort=True):
        floats, quantized = of_model[of_model["role"] == "float"], of_model[of_model["role"] != "float"]
        for scheme, of_scheme in quantized.groupby("scheme", sort=True):
            shown = one_precision(of_scheme)
            same = floats[(floats[CONTEXT] == shown[CONTEXT].iloc[0]).all(axis=1)]
            rows = pd.concat([same, shown])[["method", "accuracy", "key"]].itertuples(index=False)
            found = [(f"{_wrapped(method)}\n{value:.2f}", pictures(str(key))) for method, value, key in rows]
            found = [(label, own) for label, own in found if PREDICTION in own]
            if len(found) > 1:
                truth = [("ground truth", own[TRUTH]) for _, own in found[:1] if TRUTH in own]
                drawn = [*truth, *((label, own[PREDICTION]) for label, own in found)]
                first = shown.iloc[0]
                metric = metrics.label(first["metric"])
                title = (
                    f"{model}, {first['bits']}, scheme {scheme}, seed {first['seed']}; {metric} of "
                    f"{int(first['images']):,} images, of which the first {min(COLUMNS, len(drawn[0][1]))} are shown"
                )
                yield (str(task), str(model), str(scheme)), prediction_figure(title, drawn)


def prediction_figure(title: str, rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """One row for each label and images (n, height, width, 3), as they are."""
    strips = [np.concatenate(list(images[:COLUMNS]), axis=1) for _, images in rows]
    width = max(strip.shape[1] for strip in strips) / _INCH
    heights = [strip.shape[0] / _INCH for strip in strips]
    size = (_LABEL + width + _GAP, _TITLE + sum(heights) + _GAP * len(rows))
    figure = Figure(figsize=size, dpi=_INCH)
    figure.text(0.1 / size[0], 1 - 0.5 * _TITLE / size[1], title, va="center", fontsize=11)
    top = size[1] - _TITLE
    for (label, _), strip, height in zip(rows, strips, heights, strict=True):
        place = (_LABEL / size[0], (top - height) / size[1], strip.shape[1] / _INCH / size[0], height / size[1])
        axis = figure.add_axes(place)
        axis.imshow(strip, interpolation="nearest", aspect="auto")
        axis.axis("off")
        figure.text(0.1 / size[0], (top - height / 2) / size[1], label, va="center", fontsize=10)
        top -= height + _GAP
    return figure


def _wrapped(method: str) -> str:
    """A method's name in lines that fit beside the images, broken where its options begin or end if it can be."""
    spaced = method.replace("[", " [").replace(",", ", ").replace("+", " +")
    lines = textwrap.wrap(spaced, _LETTERS)
    return "\n".join(line.replace(" [", "[").replace(" +", "+") for line in lines)
