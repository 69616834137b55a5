"""Calibration images of every method side by side: what did the quantizer look at, and how did it come about?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.report.tables import bit_order

COLUMNS = 8
GAP = 2  # pixels of the enlarged strip between two images
LABELS = 6  # names that fit beside a row
TILE = 96  # a side of an enlarged image, about
MOSAIC_IMAGES = 4
MOSAIC = 140  # a side of four images together, about
ROLE_ORDER = ("ceiling", "method", "floor")  # rows from top to bottom

Snapshots = Mapping[int, NDArray[np.uint8]]  # optimisation step -> images (n, height, width, channels)


def gallery_figure(title: str, rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """One row per method: its name and its first images, enlarged without smoothing.

    Args:
        title: Says which model and seed; how many images there are stands behind it.
        rows: Label and images (n, height, width, channels) of each row; one channel is shown as grey.
    """
    strips = [_strip(images) for _, images in rows]
    most = max(len(images[:COLUMNS]) for _, images in rows)
    shown = f"the first {most}" if most > 1 else "the first one"
    width = max(strip.shape[1] for strip in strips)
    inch = 100  # pixels
    label_width, title_height, row_gap = 2.0, 0.4, 0.1
    heights = [strip.shape[0] / inch for strip in strips]
    size = (label_width + width / inch + row_gap, title_height + sum(heights) + row_gap * len(rows))
    figure = Figure(figsize=size, dpi=inch)
    figure.text(label_width / size[0], 1 - 0.5 * title_height / size[1], f"{title}, {shown}", va="center")
    top = size[1] - title_height
    for (label, _), strip, height in zip(rows, strips, heights, strict=True):
        place = (label_width / size[0], (top - height) / size[1], strip.shape[1] / inch / size[0], height / size[1])
        axis = figure.add_axes(place)
        axis.imshow(strip, interpolation="nearest", aspect="auto")
        axis.axis("off")
        figure.text(0.1 / size[0], (top - height / 2) / size[1], label, va="center", fontsize=9)
        top -= height + row_gap
    return figure


def galleries(
    cells: pd.DataFrame, images: Callable[[str], NDArray[np.uint8] | None]
) -> Iterator[tuple[str, int, list[tuple[str, NDArray[np.uint8]]]]]:
    """Model, seed and rows of every gallery: the first seed of every method whose `images`, by cell key, were kept."""
    measured = cells[(cells["status"] == "ok") & (cells["role"] != "float")]
    for model, of_model in measured.groupby("model", sort=True):
        seed = int(of_model["seed"].min())
        first = of_model[of_model["seed"] == seed]
        rank = first["role"].map({role: place for place, role in enumerate(ROLE_ORDER)})
        ordered = first.assign(rank=rank).sort_values(["rank", "method", "bits", "key"])
        several = len(set(ordered["scheme"])) > 1
        shown = []
        for method, bits, scheme, key in ordered[["method", "bits", "scheme", "key"]].itertuples(index=False):
            found = images(key)
            if found is not None and len(found):
                shown.append((method, f"{bits} {scheme}" if several else bits, found))
        if shown:
            yield str(model), seed, distinct(shown)


def distinct(cells: Sequence[tuple[str, str, NDArray[np.uint8]]]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Rows of a gallery from (method, bits, images): equal images are shown once, under the names of all methods.

    The bits are part of a label only where a method's images differ between them.
    """
    groups: dict[bytes, tuple[NDArray[np.uint8], list[tuple[str, str]]]] = {}
    for method, bits, images in cells:
        content = repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()
        groups.setdefault(content, (images, []))[1].append((method, bits))
    occurrences: dict[str, int] = {}
    for _, names in groups.values():
        for method in {method for method, _ in names}:
            occurrences[method] = occurrences.get(method, 0) + 1
    rows = []
    for images, names in groups.values():
        labels = list(dict.fromkeys(f"{m} {bits}" if occurrences[m] > 1 else m for m, bits in names))
        if len(labels) > LABELS:
            labels[LABELS - 1 :] = [f"and {len(labels) - LABELS + 1} more"]
        rows.append(("\n".join(labels), images))
    return rows


def one_precision(cells: pd.DataFrame) -> pd.DataFrame:
    """The first seed of every method at one scheme and precision, so that each method is shown once.

    It is the one with the most methods, at a tie with the fewest bits, where methods differ most.
    """
    first = cells[cells["seed"] == cells["seed"].min()]
    counts = first.groupby(["scheme", "bits"])["method"].nunique()
    scheme, bits = max(sorted(counts.index), key=lambda i: (counts[i], [-n for n in bit_order(i[1])]))
    rank = first["role"].map({role: place for place, role in enumerate(ROLE_ORDER)})
    shown: pd.DataFrame = first.assign(rank=rank)[(first["scheme"] == scheme) & (first["bits"] == bits)]
    return shown.sort_values(["rank", "method", "key"]).drop_duplicates("method")


def iterations_figure(title: str, rows: Sequence[tuple[str, Snapshots]]) -> Figure:
    """One row per method: its first four images as a square, after each step that was kept.

    Args:
        title: Says which model, precision and seed.
        rows: Method and snapshots of each row; methods of equal snapshots share a row.
    """
    merged: dict[bytes, tuple[list[str], Snapshots]] = {}
    for method, snapshots in rows:
        content = b"".join(f"{step}{part.shape}".encode() + part.tobytes() for step, part in sorted(snapshots.items()))
        merged.setdefault(content, ([], snapshots))[0].append(method)
    columns = max(len(snapshots) for _, snapshots in rows)
    size = (2.0 + 1.5 * columns, 0.4 + 1.7 * len(merged))
    figure = Figure(figsize=size, dpi=100)
    figure.text(0.1 / size[0], 1 - 0.2 / size[1], title, va="center")
    for place, (methods, snapshots) in enumerate(merged.values()):
        bottom = size[1] - 0.4 - 1.7 * (place + 1)
        figure.text(0.1 / size[0], (bottom + 0.7) / size[1], "\n".join(methods[:LABELS]), va="center", fontsize=9)
        for column, (step, images) in enumerate(sorted(snapshots.items())):
            left = 2.0 + 1.5 * column
            axis = figure.add_axes((left / size[0], bottom / size[1], 1.4 / size[0], 1.4 / size[1]))
            mosaic = _mosaic(images)
            axis.imshow(mosaic, interpolation="nearest" if max(mosaic.shape) <= MOSAIC else "antialiased")
            axis.set_title(f"step {step}" if step else "start", fontsize=8, pad=3)
            axis.axis("off")
    return figure


def _mosaic(images: NDArray[np.uint8]) -> NDArray[Any]:
    """The first images, two a row, on white; as RGB."""
    shown = images[:MOSAIC_IMAGES]
    strips = [_strip(shown[i : i + 2], MOSAIC // 2) for i in range(0, len(shown), 2)]
    gap = np.full((GAP, strips[0].shape[1], 3), 255, dtype=np.uint8)
    padding = strips[0].shape[1] - strips[-1].shape[1]  # an odd image leaves a place free
    strips[-1] = np.pad(strips[-1], ((0, 0), (0, padding), (0, 0)), constant_values=255)
    return np.concatenate([part for strip in strips for part in (strip, gap)][:-1], axis=0)


def _strip(images: NDArray[np.uint8], side: int = TILE) -> NDArray[Any]:
    """The first images side by side on white, as RGB, each enlarged to about `side` pixels."""
    shown = images[:COLUMNS]
    factor = max(1, round(side / shown.shape[1]))
    shown = shown.repeat(factor, axis=1).repeat(factor, axis=2)
    if shown.shape[3] == 1:
        shown = shown.repeat(3, axis=3)
    gap = np.full((shown.shape[1], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for image in shown for part in (image, gap)][:-1], axis=1)
