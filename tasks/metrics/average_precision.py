"""COCO's average precision of boxes and masks, in points (0 to 100).

It is not a mean over images, so reports resample whole images and compute it again from what is kept of every image;
see `harness.report.stats`. A resample is how often each image counts, so no image has to be scored twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.files.coco_format import Detections, results

log = logging.getLogger(__name__)

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image that count
Weights = NDArray[np.float64]


def average_precision(
    truth: dict[str, Any], detections: Sequence[Detections], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """`ap` (mean over IoU 0.50 to 0.95), `ap50` and `ap75` of boxes or masks by COCO's protocol, mean over classes.

    No detection at all is 0, not a missing value.

    Args:
        truth: a COCO data set, as `tasks.files.coco_format.ground_truth` makes it.
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


def detection_outcomes(
    truth: dict[str, Any], detections: Sequence[Detections], kind: Literal["bbox", "segm"]
) -> pd.DataFrame:
    """One row per image, in the data set's order.

    `positives` has the category of every object that counts; `category`, `score` and `hits` belong to the detections
    that count, best first. Bit t of `hits` tells whether the detection is right at IoU threshold t by COCO's matching;
    one that lies on a crowd at that threshold does not count there, and has bit t of `ignored`.

    Args:
        truth: a COCO data set.
        detections: one for each image.
        kind: what IoU is of.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    numbers = [image["id"] for image in truth["images"]]
    objects: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        objects.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    rows: dict[int, dict[str, list[Any]]] = {
        n: {"positives": [], "category": [], "score": [], "hits": [], "ignored": []} for n in numbers
    }
    for (number, category), own in objects.items():
        rows[number]["positives"] += [category] * sum(not a.get("iscrowd", 0) for a in own)
    found = results(detections, masks=kind == "segm")
    for result in found:
        result["image_id"] = numbers[result["image_id"] - 1]
    if found:
        data = COCO(truth)
        evaluator = COCOeval_faster(data, data.loadRes(found), kind, print_function=lambda *_: None)
        evaluator.evaluate()
        scores: dict[tuple[int, int], list[float]] = {}
        for result in found:
            scores.setdefault((result["image_id"], result["category_id"]), []).append(result["score"])
        for (number, category), unordered in scores.items():
            # As COCO's evaluators order them: stable, best first.
            best = np.sort(-np.array(unordered), kind="stable")[:MOST]
            crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects.get((number, category), [])], bool)
            overlaps = np.asarray(evaluator.ious[number, category], float).reshape(len(best), -1)
            hits, ignored = matched(overlaps, crowd)
            row = rows[number]
            row["category"] += [category] * len(best)
            row["score"] += (-best).tolist()
            row["hits"] += hits.tolist()
            row["ignored"] += ignored.tolist()
    return pd.DataFrame({"index": range(len(numbers)), **_columns(rows.values())})


def matched(overlaps: NDArray[np.float64], crowd: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """COCO's greedy matching at every threshold: bit masks `hits` and `ignored`, (detections,).

    Args:
        overlaps: IoU of detections, best first, with objects (detections, objects).
        crowd: objects that may be matched by many, to no one's merit (objects,).
    """
    hits, ignored = np.zeros((2, len(overlaps)), np.int64)
    order = np.argsort(crowd, kind="stable")  # single objects come first
    for bit, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(crowd), bool)
        for d, row in enumerate(overlaps):
            chosen, best = -1, min(threshold, 1 - 1e-10)
            for g in order:
                if not free[g]:
                    continue
                if chosen >= 0 and crowd[g] and not crowd[chosen]:
                    break
                if row[g] >= best:
                    chosen, best = int(g), row[g]
            if chosen < 0:
                continue
            if crowd[chosen]:
                ignored[d] |= 1 << bit
            else:
                hits[d] |= 1 << bit
                free[chosen] = False
    return hits, ignored


def average_precision_of(outcomes: pd.DataFrame) -> Any:
    """COCO's average precision in points, mean over thresholds and categories, as a function of images' weights.

    Args:
        outcomes: from `detection_outcomes`.

    Returns:
        A `harness.report.stats.Metric`: (resamples, images) -> (resamples,). A category without any object in a
        resample does not count in it.
    """
    images = np.arange(len(outcomes))
    flat = {
        name: np.concatenate([np.asarray(x, dtype) for x in outcomes[name]] or [np.zeros(0, dtype)])
        for name, dtype in (("positives", int), ("category", int), ("score", float), ("hits", int), ("ignored", int))
    }
    of_object = np.repeat(images, [len(x) for x in outcomes["positives"]])
    of_detection = np.repeat(images, [len(x) for x in outcomes["score"]])
    bits = 1 << np.arange(len(THRESHOLDS))

    def metric(weights: Weights) -> Weights:
        per_category = []
        for category in np.unique(flat["positives"]):
            counts = np.bincount(of_object[flat["positives"] == category], minlength=len(images))
            own = np.flatnonzero(flat["category"] == category)
            own = own[np.argsort(-flat["score"][own], kind="stable")]
            hits, ignored = (flat[name][own][:, None] & bits > 0 for name in ("hits", "ignored"))
            per_category.append(_precision(weights, weights @ counts, of_detection[own], hits, ignored))
        means: Weights = np.nanmean(np.stack(per_category), axis=0)
        return 100 * means

    return metric


def _precision(
    weights: Weights,
    positives: Weights,
    images: NDArray[np.int64],
    hits: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
) -> Weights:
    """Mean over thresholds and recalls of one category's precision: (resamples,), NaN without positives.

    Args:
        weights: of images (resamples, images).
        positives: weighted number of objects (resamples,).
        images: image of each detection, best first (detections,).
        hits: (detections, thresholds).
        ignored: (detections, thresholds).
    """
    total = np.zeros(len(weights))
    own = weights[:, images]
    for hit, out in zip(hits.T, ignored.T, strict=True):
        right = np.cumsum(own * hit, axis=1)
        counted = np.cumsum(own * ~out, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = right / positives[:, None]
            precision = np.where(counted > 0, right / counted, 0.0)
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for r, (reached, values) in enumerate(zip(recall, highest, strict=True)):
            place = np.searchsorted(reached, RECALLS, side="left")
            total[r] += np.append(values, 0.0)[place].mean()
    return np.where(positives > 0, total / len(THRESHOLDS), np.nan)


def _columns(rows: Any) -> dict[str, list[list[Any]]]:
    kept = list(rows)
    return {name: [row[name] for row in kept] for name in kept[0]} if kept else {}
