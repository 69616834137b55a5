from __future__ import annotations

import numpy as np
import pytest
from test_dense_metrics import NAMES, SIZE, detections

from tasks.files import coco_format as coco
from tasks.metrics.average_precision import average_precision, average_precision_of, detection_outcomes, matched
from tasks.metrics.mean_iou import confusion, mean_iou, mean_iou_of, segmentation_outcomes
from tasks.suites.embedded.scene_splits import evaluation_scenes


@pytest.fixture(scope="module")
def scenes():
    return list(evaluation_scenes().take(0, 12))


@pytest.fixture(scope="module")
def truth(scenes):
    data = coco.ground_truth(scenes, SIZE, NAMES)
    data["annotations"][3]["iscrowd"] = 1
    return data


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_images_once_give_the_average_precision_itself(kind, scenes, truth):
    pytest.importorskip("faster_coco_eval")
    found = detections(scenes, np.random.default_rng(0), shift=4, wrong=0.3)
    metric = average_precision_of(detection_outcomes(truth, found, kind))
    expected = average_precision(truth, found, kind)["ap"]
    assert metric(np.ones((1, 12)))[0] == pytest.approx(expected, abs=1e-6)
    # So does any number of times each.
    assert metric(np.full((1, 12), 7.0))[0] == pytest.approx(expected, abs=1e-6)


def test_a_resample_is_a_data_set_of_its_own(scenes, truth):
    pytest.importorskip("faster_coco_eval")
    found = detections(scenes, np.random.default_rng(1), shift=4, wrong=0.3)
    metric = average_precision_of(detection_outcomes(truth, found, "bbox"))
    weights = np.zeros((2, 12))
    weights[0, :6] = weights[1, 6:] = 1
    for row, part in zip(metric(weights), (slice(0, 6), slice(6, 12)), strict=True):
        numbers = {image["id"] for image in truth["images"][part]}
        own = {
            **truth,
            "images": truth["images"][part],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in numbers],
        }
        if part.start:  # the evaluation numbers images from 1
            own["images"] = [{**image, "id": image["id"] - part.start} for image in own["images"]]
            own["annotations"] = [{**a, "image_id": a["image_id"] - part.start} for a in own["annotations"]]
        assert row == pytest.approx(average_precision(own, found[part], "bbox")["ap"], abs=1e-6)


def test_no_detections_are_0(scenes, truth):
    nothing = coco.Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros((0, *SIZE), bool))
    metric = average_precision_of(detection_outcomes(truth, [nothing] * 12, "bbox"))
    assert metric(np.ones((3, 12))).tolist() == [0.0, 0.0, 0.0]


def test_matching_is_greedy_and_crowds_take_what_is_left():
    #              object 0 is single, 1 is a crowd
    overlaps = np.array([[0.72, 0.9], [0.8, 0.6], [0.1, 0.2]])
    hits, ignored = matched(overlaps, np.array([False, True]))
    # The first takes the single object as long as it reaches it (0.50 to 0.70), else the crowd (0.75 to 0.90); the
    # second is left the crowd (0.50 to 0.60), or gets the object where the first does not reach it (0.75 and 0.80).
    assert [bin(h) for h in hits] == ["0b11111", "0b1100000", "0b0"]
    assert [bin(i) for i in ignored] == ["0b111100000", "0b111", "0b0"]


def test_mean_iou_of_resampled_images():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (2, 5, 8, 8))
    confusions = np.stack([confusion(t, p, 4) for t, p in zip(*maps, strict=True)])
    metric = mean_iou_of(segmentation_outcomes(confusions))
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 0]])
    expected = [mean_iou(confusions), mean_iou(confusions[[0, 0, 2]])]
    assert metric(weights.astype(float)) == pytest.approx(expected)
