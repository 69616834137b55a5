from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks.files import coco_format as coco
from tasks.files.coco_format import Detections
from tasks.metrics.average_precision import average_precision
from tasks.metrics.mean_iou import class_iou, confusion, mean_iou
from tasks.suites.embedded.scene_splits import evaluation_scenes

SIZE = (128, 128)
NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def scenes():
    return list(evaluation_scenes().take(0, 12))


@pytest.fixture(scope="module")
def truth(scenes):
    return coco.ground_truth(scenes, SIZE, NAMES)


def detections(scenes, rng, *, shift, wrong):
    """The truth, moved by up to `shift` pixels, a share `wrong` with another class, and some found twice."""
    found = []
    for scene in scenes:
        index = np.concatenate([np.arange(len(scene.classes)), rng.integers(0, len(scene.classes), 2)])
        moves = rng.integers(-shift, shift + 1, (len(index), 2))
        masks = np.stack([np.roll(scene.masks[i], m[::-1], (0, 1)) for i, m in zip(index, moves, strict=True)])
        classes = np.where(rng.random(len(index)) < wrong, rng.integers(0, 10, len(index)), scene.classes[index])
        found.append(Detections(scene.boxes[index] + np.tile(moves, 2), classes, rng.random(len(index)), masks))
    return found


# --- average precision


def perfect(scenes):
    return [Detections(s.boxes, s.classes, np.ones(len(s.classes)), s.masks) for s in scenes]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_detections_are_100_and_none_are_0(kind, scenes, truth):
    pytest.importorskip("faster_coco_eval")
    assert average_precision(truth, perfect(scenes), kind) == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    nothing = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros((0, *SIZE), bool))
    assert average_precision(truth, [nothing] * len(scenes), kind) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    wrong = [Detections(d.boxes, (d.classes + 1) % 10, d.scores, d.masks) for d in perfect(scenes)]
    assert average_precision(truth, wrong, kind)["ap"] < 10


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_is_pycocotools(kind, scenes, truth):
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    before = copy.deepcopy(truth)
    found = detections(scenes, np.random.default_rng(0), shift=4, wrong=0.3)
    measured = average_precision(truth, found, kind)
    assert truth == before
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = copy.deepcopy(truth)
        data.createIndex()
        evaluator = COCOeval(data, data.loadRes(coco.results(found, masks=kind == "segm")), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert 5 < measured["ap"] < 95
    assert list(measured.values()) == pytest.approx(list(100 * evaluator.stats[:3]), abs=1e-9)


def test_bad_input_gets_a_sentence(scenes, truth):
    with pytest.raises(ValueError, match="11 images were detected on, but 12"):
        average_precision(truth, perfect(scenes)[1:], "bbox")
    with pytest.raises(ValueError, match="no object"):
        average_precision(coco.ground_truth([], SIZE, NAMES), [], "bbox")


# --- COCO format


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_run_lengths_give_back_the_mask(mask):
    encoded = coco.run_lengths(mask)
    counts = encoded["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert encoded["size"] == list(mask.shape)
    assert np.array_equal(flat.reshape(mask.shape[::-1]).T, mask)
    assert all(n > 0 for n in counts[1:])


def test_annotations_say_what_the_scene_holds(scenes, truth):
    assert len(truth["images"]) == len(scenes)
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 1 + sum(len(s.classes) for s in scenes)))
    first = [a for a in truth["annotations"] if a["image_id"] == 1]
    assert [a["category_id"] - 1 for a in first] == scenes[0].classes.tolist()
    assert [a["area"] for a in first] == scenes[0].masks.sum((1, 2)).tolist()
    x, y, w, h = first[0]["bbox"]
    assert [x, y, x + w, y + h] == scenes[0].boxes[0].tolist()


# --- intersection over union


def test_confusion_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 255]])
    prediction = np.array([[0, 1, 1], [1, 0, 2]])
    assert confusion(truth, prediction, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    iou = class_iou(confusion(truth, prediction, 4))
    assert iou[:3] == pytest.approx([100 / 3, 200 / 3, 0])
    assert np.isnan(iou[3])
    assert mean_iou(confusion(truth, prediction, 4)) == pytest.approx(100 / 3)


@given(hnp.arrays(np.int64, (3, 2, 4, 4), elements=st.integers(0, 4)))
def test_pooled_confusions_are_those_of_all_pixels(maps):
    parts = np.stack([confusion(t, p, 5) for t, p in maps])
    whole = confusion(maps[:, 0].reshape(-1, 4), maps[:, 1].reshape(-1, 4), 5)
    assert np.array_equal(parts.sum(0), whole)
    assert whole.sum() == 48
    assert mean_iou(parts) == mean_iou(whole)
    assert mean_iou(confusion(maps[0, 0], maps[0, 0], 5)) == 100.0
