"""Figures of merit of detectors and segmentation models: COCO's average precision, mean intersection over union.

Knows neither models nor data sets. All results are in points (0 to 100).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.coco import Detections, results

log = logging.getLogger(__name__)

IGNORED = 255  # label of pixels that do not count


def average_precision(
    truth: dict[str, Any], detections: Sequence[Detections], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """`ap` (mean over IoU 0.50 to 0.95), `ap50` and `ap75` of boxes or masks by COCO's protocol, mean over classes.

    No detection at all is 0, not a missing value.

    Args:
        truth: a COCO data set, as `tasks.coco.ground_truth` makes it.
        detections: one for each image, in the data set's order.
        kind: `bbox` or `segm`; the latter needs masks.

    Raises:
        ValueError: images and detections differ in number, or nothing is annotated.
    """
    if len(detections) != len(truth["images"]):
        raise ValueError(f"{len(detections)} images were detected on, but {len(truth['images'])} are annotated")
    if not truth["annotations"]:
        raise ValueError("no object is annotated, so there is no average precision")
    found = results(detections, masks=kind == "segm")
    if not found:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    from faster_coco_eval import COCO, COCOeval_faster

    data = COCO(truth)
    evaluator = COCOeval_faster(data, data.loadRes(found), kind, print_function=log.debug)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return dict(zip(("ap", "ap50", "ap75"), (100.0 * float(x) for x in evaluator.stats[:3]), strict=True))


def confusion(truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Pixels of each true class (row) and predicted class (column) of one image: (classes, classes).

    Args:
        truth: label map (h, w); pixels of `IGNORED` do not count.
        prediction: label map (h, w) of classes alone.
        classes: their number, background included if it is one.
    """
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusions: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union of each class, (classes,), NaN for one that neither occurs nor is predicted.

    Args:
        confusions: of one image (classes, classes), or of several (n, classes, classes), which are pooled.
    """
    return intersection_over_union(confusions.reshape(-1, *confusions.shape[-2:]).sum(0))


def intersection_over_union(pooled: NDArray[np.number]) -> NDArray[np.float64]:
    """The same of each pooled matrix by itself: (..., classes, classes) -> (..., classes)."""
    shared = np.diagonal(pooled, axis1=-2, axis2=-1).astype(np.float64)
    union = pooled.sum(-2) + pooled.sum(-1) - shared
    return 100.0 * np.divide(shared, union, out=np.full_like(shared, np.nan), where=union > 0)


def mean_iou(confusions: NDArray[np.integer]) -> float:
    """Mean of `class_iou` over the classes that occur or are predicted."""
    return float(np.nanmean(class_iou(confusions)))
