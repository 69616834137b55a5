"""Annotations and detections in COCO's format: plain dicts and lists, as its evaluators and JSON files have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

RunLengths = dict[str, Any]  # a mask in COCO's encoding, see `run_lengths`


class Annotated(Protocol):
    """What is known of one image. Classes count from 0."""

    @property
    def boxes(self) -> NDArray[np.floating]:
        """(k, 4), xyxy in pixels."""

    @property
    def classes(self) -> NDArray[np.integer]:
        """(k,)."""

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """(k, h, w); None for boxes alone."""


@dataclass(frozen=True)
class Detections:
    """What a detector found on one image."""

    boxes: NDArray[np.floating]  # (k, 4), xyxy in pixels
    classes: NDArray[np.integer]  # (k,), from 0
    scores: NDArray[np.floating]  # (k,)
    masks: NDArray[np.bool_] | Sequence[RunLengths] | None = None  # (k, h, w), or k encoded ones

    def encoded(self) -> Detections:
        """The same with encoded masks, which take a thousandth of the memory."""
        return self if self.masks is None else replace(self, masks=[encoded(mask) for mask in self.masks])


def ground_truth(images: Iterable[Annotated], size: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
    """A COCO data set of `images` of `size` (height, width) with ids from 1, categories (`names`) with ids from 1.

    An annotation's area is its mask's, or its box's without one.
    """
    annotations: list[dict[str, Any]] = []
    count = 0
    for count, image in enumerate(images, start=1):
        for index, (box, category) in enumerate(zip(image.boxes, image.classes, strict=True)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": count,
                "category_id": int(category) + 1,
                "bbox": xywh(box),
                "iscrowd": 0,
            }
            if image.masks is None:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            else:
                annotation["area"] = int(image.masks[index].sum())
                annotation["segmentation"] = run_lengths(image.masks[index])
            annotations.append(annotation)
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": i, "height": size[0], "width": size[1], "file_name": f"{i}.png"} for i in range(1, count + 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        "annotations": annotations,
    }


def results(images: Iterable[Detections], *, masks: bool) -> list[dict[str, Any]]:
    """COCO's result list of `images`, numbered as in `ground_truth`, with the detections' masks or without."""
    return [
        {"image_id": number, "category_id": int(category) + 1, "bbox": xywh(box), "score": float(score)}
        | ({"segmentation": encoded(image.masks[index])} if masks else {})  # type: ignore[index]
        for number, image in enumerate(images, start=1)
        for index, (box, category, score) in enumerate(zip(image.boxes, image.classes, image.scores, strict=True))
    ]


def xywh(box: NDArray[np.floating]) -> list[float]:
    """Corner, width and height of `box` (4,), xyxy."""
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def xyxy(annotations: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Boxes (k, 4) of annotations, by two corners."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def encoded(mask: NDArray[np.bool_] | RunLengths) -> RunLengths:
    """`mask` (h, w) in COCO's encoding, if it is not encoded already."""
    return mask if isinstance(mask, dict) else run_lengths(mask)


def run_lengths(mask: NDArray[np.bool_]) -> RunLengths:
    """Uncompressed run-length encoding of `mask` (h, w): runs down the columns, unset ones first."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(borders, prepend=0).tolist()}
