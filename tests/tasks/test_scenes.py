from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import UsageError
from tasks.suites.embedded import scenes as module
from tasks.suites.embedded.dataset import FILE
from tasks.suites.embedded.scene_splits import calibration_scenes, evaluation_scenes
from tasks.suites.embedded.scenes import SIZE, VISIBLE_PIXELS, VISIBLE_SHARE, Scene, Scenes, compose, resize, silhouette

TEST = evaluation_scenes()


@settings(max_examples=25)
@given(index=st.integers(0, 10_000))
def test_a_scene_is_consistent(index):
    scene = TEST[index]
    assert scene.image.shape == (3, SIZE, SIZE)
    assert scene.image.dtype == np.uint8
    assert len(scene.masks) == len(scene.classes) == len(scene.boxes) <= module.ITEMS[1]
    assert (scene.masks.sum(0) <= 1).all()  # visible parts are disjoint
    for mask, box in zip(scene.masks, scene.boxes, strict=True):
        assert mask.sum() >= VISIBLE_PIXELS
        x1, y1, x2, y2 = box.astype(int)
        inside = np.zeros_like(mask)
        inside[y1:y2, x1:x2] = True
        assert not (mask & ~inside).any()
        assert mask[y1].any()
        assert mask[y2 - 1].any()
        assert mask[:, x1].any()
        assert mask[:, x2 - 1].any()
    assert (scene.label_map == 0).sum() == (~scene.masks.any(0)).sum()
    for mask, category in zip(scene.masks, scene.classes, strict=True):
        assert (scene.label_map[mask] == category + 1).all()


@settings(max_examples=25)
@given(index=st.integers(0, 10_000), other=st.integers(0, 10_000))
def test_a_scene_follows_from_seed_and_number_alone(index, other):
    first = TEST[index]
    TEST[other]
    again = Scenes(TEST.items, TEST.labels, TEST.seed)[index]
    assert all(np.array_equal(getattr(first, k), getattr(again, k)) for k in ("image", "masks", "classes"))
    different = Scenes(TEST.items, TEST.labels, TEST.seed + 1)[index]
    assert not np.array_equal(first.image, different.image)


def test_bytes_are_the_same_everywhere():
    # The first scenes as they were when published results began to depend on them. A change means new results.
    sums = [zlib.crc32(s.image.tobytes() + s.label_map.tobytes()) for s in TEST.take(0, 3)]
    assert sums == [1910950756, 2800680304, 3338124874]


def test_most_scenes_have_several_items_and_all_classes_occur():
    counts, classes = [], set()
    for scene in TEST.take(0, 60):
        counts.append(len(scene.classes))
        classes.update(scene.classes.tolist())
    assert np.mean(counts) > 3
    assert classes == set(range(10))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_what_is_left_out_is_not_drawn(seed):
    # One item that fills its frame: later ones behind it are seen in part or not at all.
    items, labels = np.full((1, 28, 28), 255, np.uint8), np.array([4])
    scene = compose(items, labels, np.random.default_rng(seed))
    for mask, box in zip(scene.masks, scene.boxes, strict=True):
        x1, y1, x2, y2 = box
        assert mask.sum() >= VISIBLE_SHARE * module.SIDES[0] ** 2
        assert mask.sum() <= (x2 - x1) * (y2 - y1)
    colours = {tuple(scene.image[:, mask].T.mean(0)) for mask in scene.masks}
    assert len(colours) == len(scene.masks)  # one colour an item, uniform as the item is
    for mask in scene.masks:
        assert (scene.image[:, mask] == scene.image[:, mask][:, :1]).all()


def test_empty_frames_make_an_empty_scene():
    scene = compose(np.zeros((1, 28, 28), np.uint8), np.array([0]), np.random.default_rng(0))
    assert (len(scene.classes), scene.masks.shape, scene.boxes.shape) == (0, (0, SIZE, SIZE), (0, 4))
    assert not scene.label_map.any()


def test_splits_share_no_item():
    seen = {item.tobytes() for item in TEST.items}
    assert not any(item.tobytes() in seen for item in calibration_scenes().items)
    assert len(TEST.items) == 2000
    assert len(calibration_scenes().items) == 512


@pytest.mark.parametrize("keep", [None, 0, 40, 0.5, -1])
@pytest.mark.parametrize("scenes_of", [evaluation_scenes, calibration_scenes])
def test_damaged_items_get_a_sentence(tmp_path: Path, scenes_of, keep):
    """A file that is not there (None), or of which some bytes, half, or all but the last are."""
    file = tmp_path / "items.npz"
    if keep is not None:
        whole = FILE.read_bytes()
        file.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UsageError, match=r"items\.npz are damaged.*makes them anew"):
        scenes_of(file)


def test_scenes_have_no_negative_number():
    with pytest.raises(IndexError, match="scene -1"):
        TEST[-1]


def test_boxes_and_label_map_of_a_known_scene():
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[0, 3:7, 10:12] = True
    masks[1, 0, 0] = True
    scene = Scene(np.zeros((3, SIZE, SIZE), np.uint8), masks, np.array([0, 9]))
    assert scene.boxes.tolist() == [[10, 3, 12, 7], [0, 0, 1, 1]]
    assert (scene.label_map[3, 10], scene.label_map[0, 0], scene.label_map[50, 50]) == (1, 10, 0)


def test_silhouette_fills_dark_prints():
    item = np.zeros((9, 9), np.uint8)
    item[2:7, 2:7] = 200
    item[4, 4] = 0
    assert silhouette(item).sum() == 25


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_resizing_keeps_constant_images(height, width, value):
    assert (resize(np.full((7, 5), value, np.uint8), height, width) == value).all()


def test_resizing_interpolates():
    assert resize(np.array([[0, 100]], np.uint8), 1, 4).tolist() == [[0, 25, 75, 100]]
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert np.array_equal(resize(image, 28, 28), image)
