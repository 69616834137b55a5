from __future__ import annotations

import numpy as np

from tasks.dense.drawing import SIDE, colour, draw_labels, draw_objects, enlarged, side_by_side

GREY = np.full((64, 128, 3), 100, np.uint8)
NAMES = ("dress", "bag", "coat")


def test_colours_differ_in_hue_or_brightness():
    colours = [np.array(colour(i), float) for i in range(20)]
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 25


def test_images_are_scaled_to_one_longest_side():
    picture, factor = enlarged(GREY)
    assert (picture.shape, factor) == ((SIDE // 2, SIDE, 3), SIDE / 128)
    assert enlarged(np.zeros((900, 300, 3), np.uint8))[0].shape == (SIDE, round(SIDE / 3), 3)


def test_boxes_and_masks_stand_where_they_are_and_weak_ones_are_left_out():
    boxes = np.array([[10, 20, 30, 50], [70, 20, 90, 50]], float)
    masks = np.zeros((2, 64, 128), bool)
    masks[0, 20:50, 10:30] = masks[1, 20:50, 70:90] = True
    picture = draw_objects(GREY, boxes, [0, 1], NAMES, masks=list(masks), scores=[0.9, 0.1])
    assert tuple(picture[60, 21]) == colour(0)  # the left edge of the first box, at twice the size
    inside = picture[70, 40].astype(int)
    assert np.abs(inside - (0.55 * 100 + 0.45 * np.array(colour(0)))).max() <= 1
    assert (picture[:, 120:] == 100).all()
    both = draw_objects(GREY, boxes, [0, 1], NAMES)
    assert (both[:, 120:] != 100).any()
    assert (draw_objects(GREY, boxes[:0], [], NAMES) == 100).all()


def test_label_maps_are_coloured_and_named_but_not_the_background():
    labels = np.full((64, 128), -1)
    labels[:, 64:] = 2
    labels[:8, :8] = 0
    picture = draw_labels(GREY, labels, NAMES, background=0)
    assert (picture[:, :120] == 100).all()
    expected = 0.4 * 100 + 0.6 * np.array(colour(2))
    assert np.abs(picture[5, 200] - expected).max() <= 1
    assert picture[50:78, 150:240].min(axis=2).max() > 230  # the name, in white


def test_pictures_of_several_sizes_stand_together():
    together = side_by_side([np.zeros((2, 3, 3), np.uint8), np.zeros((4, 1, 3), np.uint8)])
    assert together.shape == (2, 4, 3, 3)
    assert together[0, 3].min() == 255
    assert together[1, :, 0].max() == 0
