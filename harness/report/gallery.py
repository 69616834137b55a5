"""Calibration images of every method side by side: what did the quantizer look at?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLUMNS = 8
GAP = 2  # pixels of the enlarged strip between two images
LABELS = 6  # names that fit beside a row
TILE = 96  # a side of an enlarged image, about


def gallery_figure(model: str, rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """One row a method: its name and its first images, enlarged without smoothing.

    Args:
        model: Name for the title.
        rows: Label and images (n, height, width, channels) of each row; one channel is shown as grey.
    """
    strips = [_strip(images) for _, images in rows]
    width = max(strip.shape[1] for strip in strips)
    inch = 100  # pixels
    label_width, title_height, row_gap = 2.0, 0.4, 0.1
    heights = [strip.shape[0] / inch for strip in strips]
    size = (label_width + width / inch + row_gap, title_height + sum(heights) + row_gap * len(rows))
    figure = Figure(figsize=size, dpi=inch)
    figure.text(label_width / size[0], 1 - 0.5 * title_height / size[1], f"Calibration images, {model}", va="center")
    top = size[1] - title_height
    for (label, _), strip, height in zip(rows, strips, heights, strict=True):
        place = (label_width / size[0], (top - height) / size[1], strip.shape[1] / inch / size[0], height / size[1])
        axis = figure.add_axes(place)
        axis.imshow(strip, interpolation="nearest", aspect="auto")
        axis.axis("off")
        figure.text(0.1 / size[0], (top - height / 2) / size[1], label, va="center", fontsize=9)
        top -= height + row_gap
    return figure


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


def _strip(images: NDArray[np.uint8]) -> NDArray[Any]:
    """The first images side by side on white, as RGB."""
    shown = images[:COLUMNS]
    factor = max(1, round(TILE / shown.shape[1]))
    shown = shown.repeat(factor, axis=1).repeat(factor, axis=2)
    if shown.shape[3] == 1:
        shown = shown.repeat(3, axis=3)
    gap = np.full((shown.shape[1], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for image in shown for part in (image, gap)][:-1], axis=1)
