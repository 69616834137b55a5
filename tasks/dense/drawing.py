"""Draws what dense models found onto images: boxes, masks and label maps. Knows no model."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels: longest side of a drawn image, about
SHOWN_SCORE = 0.5  # detections below are not drawn
_COVER = 0.45  # of a mask's colour
_NAMED_SHARE = 0.015  # of an image
_GOLDEN = 0.61803398875  # steps of hue that keep any number of classes apart

Picture = NDArray[np.uint8]  # (height, width, 3), RGB


def colour(index: int) -> tuple[int, int, int]:
    """Colour of class `index`; neighbours differ in hue and, since not everyone sees hues, in brightness."""
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, 0.85, (1.0, 0.7, 0.85)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(image: Picture) -> tuple[Picture, float]:
    """`image` scaled so that its longest side is about SIDE, and the factor."""
    factor = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, method)), factor


def draw_objects(
    image: Picture,
    boxes: NDArray[np.floating],
    classes: Sequence[int] | NDArray[np.integer],
    names: Sequence[str],
    *,
    masks: Sequence[Any] | NDArray[np.bool_] | None = None,
    scores: Sequence[float] | NDArray[np.floating] | None = None,
) -> Picture:
    """Boxes (k, 4; xyxy in pixels of `image`) with class names, and masks (h, w) if there are any.

    With scores those below SHOWN_SCORE are left out.
    """
    shown = [i for i in range(len(classes)) if scores is None or scores[i] >= SHOWN_SCORE]
    canvas, factor = enlarged(image)
    painted = canvas.astype(np.float32)
    for index in reversed(shown) if masks is not None else ():  # the best on top
        area = _scaled_mask(masks[index], canvas.shape[:2])  # type: ignore[index]
        painted[area] = (1 - _COVER) * painted[area] + _COVER * np.array(colour(int(classes[index])), np.float32)
    picture = Image.fromarray(painted.round().astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for index in reversed(shown):
        own = colour(int(classes[index]))
        left, top, right, bottom = (float(x) * factor for x in boxes[index])
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=own, width=2)
        text = names[int(classes[index])] + ("" if scores is None else f" {scores[index]:.2f}")
        place = pen.textbbox((left + 2, max(0.0, top - 12)), text, font=font)
        pen.rectangle(place, fill=own)
        pen.text(place[:2], text, fill=_readable(own), font=font, anchor="lt")
    return np.asarray(picture)


def draw_labels(
    image: Picture, labels: NDArray[np.integer], names: Sequence[str], background: int | None = None
) -> Picture:
    """Label map (h, w) over a greyed `image`, with the names of the classes that cover more than a little of it.

    Labels that have no name, and `background`, keep the grey.
    """
    classes = len(names)
    grey = image.mean(2, keepdims=True).repeat(3, axis=2)
    palette = np.array([colour(i) for i in range(classes)], np.float32)
    counted = (labels >= 0) & (labels < classes)
    if background is not None:
        counted &= labels != background
    painted = grey.astype(np.float32)
    painted[counted] = 0.4 * painted[counted] + 0.6 * palette[labels[counted]]
    canvas, factor = enlarged(painted.round().astype(np.uint8))
    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for index in np.unique(labels[counted]):
        rows, columns = np.nonzero(labels == index)
        if len(rows) >= _NAMED_SHARE * labels.size:
            place = (float(np.median(columns)) * factor, float(np.median(rows)) * factor)
            style: dict[str, Any] = {"font": font, "anchor": "mm", "stroke_width": 1, "stroke_fill": "black"}
            pen.text(place, names[index], fill="white", **style)
    return np.asarray(picture)


def _scaled_mask(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _readable(on: tuple[int, int, int]) -> str:
    return "black" if 0.299 * on[0] + 0.587 * on[1] + 0.114 * on[2] > 140 else "white"


def side_by_side(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """Pictures of several sizes as one array (n, height, width, 3), white beyond their edges."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    together = np.full((len(pictures), height, width, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        together[place, : picture.shape[0], : picture.shape[1]] = picture
    return together
