"""Scenes for detection and segmentation, composed from Fashion-MNIST items: several on a cluttered background.

A scene follows from the items, the seed and its number alone, to the byte on every machine: pixels are computed in
integers, or in floats that hold integers exactly. Knows no model and no annotation format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 128  # pixels, height and width
ITEMS = (3, 7)  # fewest and most placements that are tried
SIDES = (32, 72)  # pixels: shortest and longest side of an item's frame, of which the item fills most
BACKDROPS = (3, 9)  # fewest and most shapes of clutter
VISIBLE_SHARE, VISIBLE_PIXELS = 0.5, 80  # an item of which less would be seen is left out
_FOREGROUND = 10  # grey value from which a pixel belongs to the item rather than to its black frame
_UNIT = 256  # fixed-point one


@dataclass(frozen=True)
class Scene:
    """One picture and what is on it; the k items stand front to back."""

    image: NDArray[np.uint8]  # (3, SIZE, SIZE)
    masks: NDArray[np.bool_]  # (k, SIZE, SIZE), the visible part of each item; they are disjoint
    classes: NDArray[np.int64]  # (k,), 0 to 9

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Smallest boxes round the masks: (k, 4), xyxy in pixels, the far edges exclusive."""
        found = np.zeros((len(self.masks), 4), np.float32)
        for box, mask in zip(found, self.masks, strict=True):
            y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box[:] = x[0], y[0], x[-1] + 1, y[-1] + 1
        return found

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """Class of each pixel (SIZE, SIZE): 0 is background, class c is c + 1."""
        found: NDArray[np.uint8] = ((self.classes + 1)[:, None, None] * self.masks).sum(0).astype(np.uint8)
        return found


@dataclass(frozen=True)
class Scenes:
    """An endless sequence of scenes over `items`, uint8 (n, 28, 28), with `labels` (n,). Different seeds: others."""

    items: NDArray[np.uint8]
    labels: NDArray[np.integer]
    seed: int

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`, from 0; the same in whatever order they are asked for."""
        if index < 0:
            raise IndexError(f"scene {index}: scenes are numbered from 0 and have no last one")
        return compose(self.items, self.labels, np.random.default_rng([self.seed, index]))

    def take(self, first: int, count: int) -> Iterator[Scene]:
        """Scenes `first` to `first + count - 1`."""
        return (self[index] for index in range(first, first + count))


def compose(items: NDArray[np.uint8], labels: NDArray[np.integer], rng: np.random.Generator) -> Scene:
    """A scene of items drawn from `items`, uint8 (n, 28, 28), by `rng`.

    Items are placed front to back, so that what is seen of one is known when it is placed: one that would be too
    occluded is left out altogether, as is one of too few pixels. A scene may end without any.
    """
    image = _background(rng)
    free = np.ones((SIZE, SIZE), bool)
    masks, classes = [], []
    for _ in range(rng.integers(ITEMS[0], ITEMS[1] + 1)):
        chosen = rng.integers(len(items))
        grey, mask = _place(items[chosen], rng)
        colours = _item_colours(rng)
        visible = mask & free
        if visible.sum() < max(VISIBLE_PIXELS, VISIBLE_SHARE * mask.sum()):
            continue
        image[:, visible] = _blend(colours, grey[visible])
        free &= ~mask
        masks.append(visible)
        classes.append(int(labels[chosen]))
    return Scene(image, np.array(masks, bool).reshape(-1, SIZE, SIZE), np.array(classes, np.int64))


def silhouette(item: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels (h, w) that belong to the item on `item` (h, w), its black prints and folds included."""
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(item >= _FOREGROUND)
    return filled


def _place(item: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey values and mask of `item` on an empty canvas: scaled, perhaps mirrored, wholly inside."""
    side = int(rng.integers(SIDES[0], SIDES[1] + 1))
    top, left = rng.integers(0, SIZE - side + 1, 2)
    if rng.random() < 0.5:
        item = item[:, ::-1]
    window = (slice(top, top + side), slice(left, left + side))
    grey, mask = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), bool)
    grey[window] = resize(item, side, side)
    mask[window] = resize(silhouette(item) * np.uint8(255), side, side) >= 128
    return grey, mask


def _item_colours(rng: np.random.Generator) -> NDArray[np.int64]:
    """Colours (2, 3) that an item has where it is darkest and where it is brightest."""
    bright = rng.integers(100, 256, 3)
    return np.stack([bright * int(rng.integers(10, 30)) // 100, bright])


def _blend(colours: NDArray[np.int64], weight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (3, ...) from the first of `colours` (2, 3) at `weight` (...) 0 to the second at 255."""
    low, high = colours.reshape(2, 3, *(1,) * weight.ndim)
    blended: NDArray[np.uint8] = (low + (high - low) * weight.astype(np.int64) // 255).astype(np.uint8)
    return blended


def _background(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Coloured clouds, coarse and fine, behind rectangles and ellipses of any colour: (3, SIZE, SIZE)."""
    coarse, fine = (
        np.stack([resize(layer, SIZE, SIZE) for layer in rng.integers(0, 256, (3, n, n), dtype=np.uint8)])
        for n in (int(rng.integers(2, 7)), int(rng.integers(16, 49)))
    )
    share = int(rng.integers(10, 50))  # percent of the fine texture
    image = ((coarse.astype(np.int64) * (100 - share) + fine.astype(np.int64) * share) // 100).astype(np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(rng.integers(BACKDROPS[0], BACKDROPS[1] + 1)):
        cy, cx = rng.integers(0, SIZE, 2)
        ry, rx = rng.integers(2, 28, 2)
        if rng.random() < 0.5:
            shape = (abs(y - cy) <= ry) & (abs(x - cx) <= rx)
        else:
            shape = ((y - cy) * rx) ** 2 + ((x - cx) * ry) ** 2 <= (rx * ry) ** 2
        colour, cover = rng.integers(0, 256, 3), int(rng.integers(40, 101))  # percent: edges of all contrasts occur
        image[:, shape] = (image[:, shape].astype(np.int64) * (100 - cover) + colour[:, None] * cover) // 100
    return image


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear interpolation of `image` (h, w), pixel centres aligned, rounded half up."""
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    # Exact whatever the order of summation: every sum is an integer of at most 256 * 256 * 255 < 2**24.
    scaled = rows @ image.astype(np.float32) @ columns.T
    return ((scaled.astype(np.int64) + _UNIT * _UNIT // 2) // (_UNIT * _UNIT)).astype(np.uint8)


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """Interpolation weights (new, old) as integers that sum to _UNIT in each row."""
    centre = ((2 * np.arange(new) + 1) * old * _UNIT // new - _UNIT) // 2  # in 1/_UNIT of an old pixel
    centre = centre.clip(0, (old - 1) * _UNIT)
    index, part = np.divmod(centre, _UNIT)
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), index] = _UNIT - part
    weights[np.arange(new), np.minimum(index + 1, old - 1)] += part
    return weights
