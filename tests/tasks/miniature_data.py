"""COCO and ADE20K in miniature, as they lie on disk, made of embedded scenes; and configs of small models for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.files import coco_format as coco
from tasks.suites.embedded.dense_dataset import CLASS_NAMES
from tasks.suites.embedded.scene_splits import calibration_scenes, evaluation_scenes
from tasks.suites.embedded.scenes import SIZE

IDS = (7, 3, 12)  # of images, in the order of the file
CATEGORIES = {name: 10 * (9 - place) + 1 for place, name in enumerate(CLASS_NAMES)}  # neither ordered nor dense
LISTED = tuple(sorted(CATEGORIES, key=CATEGORIES.__getitem__))  # as the file has them, by which mmdet numbers classes
SIZES = ((128, 128), (96, 128), (128, 112))  # the scenes cropped, so that images differ in size

CONFIG = """
_base_ = [{base!r}]
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale={scale}, keep_ratio=True),
    dict(type="LoadAnnotations", {load}),
    dict(type={pack!r}),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type={dataset!r}, {more} metainfo=dict(classes={classes!r}), pipeline=pipeline),
)
"""


def scene_files(root: Path, folder: str, scenes: list, suffix: str = "jpg") -> list[str]:
    """Write cropped scenes as images; their names."""
    (root / folder).mkdir(parents=True)
    names = []
    for index, (scene, (height, width)) in enumerate(zip(scenes, SIZES, strict=True)):
        names.append(f"{index:06}.{suffix}")
        picture = scene.image[:, :height, :width].transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(picture)).save(root / folder / names[-1], quality=95)
    return names


def make_coco(root: Path) -> Path:
    """A folder like COCO's: three images per split, one with a crowd, other categories beside ours."""
    scenes = list(evaluation_scenes().take(0, 3))
    names = scene_files(root, "val2017", scenes)
    scene_files(root, "train2017", list(calibration_scenes().take(0, 3)))
    annotations = []
    for image_id, scene, (height, width) in zip(IDS, scenes, SIZES, strict=True):
        for mask, category in zip(scene.masks[:, :height, :width], scene.classes, strict=True):
            if mask.any():
                y, x = np.nonzero(mask)
                annotations.append(
                    {
                        "id": 100 + len(annotations),
                        "image_id": image_id,
                        "category_id": CATEGORIES[CLASS_NAMES[category]],
                        "bbox": [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1],
                        "area": int(mask.sum()),
                        "iscrowd": int(not annotations),
                        "segmentation": coco.run_lengths(mask),
                    }
                )
    annotations.append({**annotations[-1], "id": 99, "category_id": 5})
    (root / "annotations").mkdir()
    content = {
        "images": [
            {"id": i, "file_name": n, "height": h, "width": w} for i, n, (h, w) in zip(IDS, names, SIZES, strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {"id": 5, "name": "umbrella"},
            *({"id": i, "name": name} for name, i in sorted(CATEGORIES.items(), key=lambda pair: pair[1])),
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def make_scenes(root: Path, count: int) -> Path:
    """The first embedded evaluation scenes, as they are, in COCO's layout and, under `labels`, as label maps."""
    scenes = list(evaluation_scenes().take(0, count))
    for folder in ("val2017", "labels", "annotations"):
        (root / folder).mkdir(parents=True)
    for index, scene in enumerate(scenes, start=1):
        Image.fromarray(np.ascontiguousarray(scene.image.transpose(1, 2, 0))).save(root / "val2017" / f"{index}.png")
        Image.fromarray(scene.label_map).save(root / "labels" / f"{index}.png")
    truth = coco.ground_truth(scenes, (SIZE, SIZE), CLASS_NAMES)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(truth))
    return root


def make_ade(root: Path) -> Path:
    """A folder like ADE20K's: three images per split; label 0 is none, the background is class 11."""
    scenes = list(evaluation_scenes().take(0, 3))
    names = scene_files(root, "images/validation", scenes)
    scene_files(root, "images/training", list(calibration_scenes().take(0, 3)))
    (root / "annotations/validation").mkdir(parents=True)
    for name, scene, (height, width) in zip(names, scenes, SIZES, strict=True):
        labels = np.where(scene.label_map == 0, 11, scene.label_map)[:height, :width].copy()
        labels[:5] = 0  # a stripe without annotation
        Image.fromarray(labels.astype(np.uint8)).save(root / "annotations/validation" / f"{Path(name).stem}.png")
    return root


def detection_config(path: Path, classes: tuple[str, ...] = LISTED, scale: tuple[int, int] = (96, 64)) -> Path:
    """The zoo's detector with a test pipeline for files."""
    text = CONFIG.format(
        base=str(Path(__file__).parents[2] / "tasks/suites/embedded/dense_configs/mask_rcnn_swin.py"),
        scale=scale,
        load="with_bbox=True, with_mask=True",
        pack="PackDetInputs",
        dataset="CocoDataset",
        classes=classes,
        more="",
    )
    path.write_text(text)
    return path


def segmentation_config(path: Path, extra: str = "") -> Path:
    """A segmentor of the zoo with a test pipeline for files whose label 0 is none."""
    text = CONFIG.format(
        base=str(Path(__file__).parents[2] / "tasks/suites/embedded/dense_configs/upernet_swin.py"),
        scale=(96, 64),
        load="reduce_zero_label=True",
        pack="PackSegInputs",
        dataset="BaseSegDataset",
        classes=(*CLASS_NAMES, "background"),
        more='img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True,',
    )
    # Whole images of any size: nothing is padded to the scenes' size.
    path.write_text(text + "model = dict(data_preprocessor=dict(size=None, size_divisor=None))\n" + extra)
    return path


def zoo_config(path: Path, name: str) -> Path:
    """Zoo model `name` with a pipeline that leaves images in the folder of `make_scenes` as they are."""
    detects = name.startswith("mask")
    text = CONFIG.format(
        base=str(Path(__file__).parents[2] / f"tasks/suites/embedded/dense_configs/{name}.py"),
        scale=(SIZE, SIZE),
        load="with_bbox=True, with_mask=True" if detects else "",
        pack="PackDetInputs" if detects else "PackSegInputs",
        dataset="CocoDataset" if detects else "BaseSegDataset",
        classes=CLASS_NAMES if detects else ("background", *CLASS_NAMES),
        more="" if detects else 'img_suffix=".png", seg_map_suffix=".png",',
    )
    # mmcv reads files as BGR, scenes are RGB.
    path.write_text(text + "model = dict(data_preprocessor=dict(bgr_to_rgb=True))\n")
    return path


def make_imagenet(root: Path, classes: tuple[str, ...] = ("n01", "n02", "n03"), images: int = 4) -> Path:
    """A folder like ImageNet's: random pictures, `images` of each class in either split."""
    rng = np.random.default_rng(0)
    for split in ("val", "train"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                pixels = rng.integers(0, 256, (170, 180, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{index}.JPEG")
    return root
