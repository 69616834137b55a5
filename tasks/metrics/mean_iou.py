"""Mean intersection over union, in points (0 to 100).

It is not a mean over images, so reports resample whole images and compute it again from what is kept of every image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

IGNORED = 255  # label of pixels that do not count
Weights = NDArray[np.float64]


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
    found: NDArray[np.float64] = np.divide(shared, union, out=np.full_like(shared, np.nan), where=union > 0)
    return 100.0 * found


def mean_iou(confusions: NDArray[np.integer]) -> float:
    """Mean of `class_iou` over the classes that occur or are predicted."""
    return float(np.nanmean(class_iou(confusions)))


def segmentation_outcomes(confusions: NDArray[np.int64]) -> pd.DataFrame:
    """One row per image with its confusion matrix, flat, from (images, classes, classes)."""
    return pd.DataFrame({"index": range(len(confusions)), "confusion": [c.ravel().tolist() for c in confusions]})


def mean_iou_of(outcomes: pd.DataFrame) -> Any:
    """Mean IoU in points as a function of images' weights, a `harness.report.stats.Metric`."""
    flat = np.stack([np.asarray(x, np.float64) for x in outcomes["confusion"]])
    classes = round(np.sqrt(flat.shape[1]))

    def metric(weights: Weights) -> Weights:
        pooled = (weights @ flat).reshape(len(weights), classes, classes)
        means: Weights = np.nanmean(intersection_over_union(pooled), axis=1)
        return means

    return metric
