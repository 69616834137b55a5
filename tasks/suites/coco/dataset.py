"""COCO's data in its own layout, or other data in the same: annotations/, train2017/ and val2017/ under one root."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import UsageError
from tasks.dense.folder import (
    TrainingImages,
    file_reader,
    files_identity,
    is_file,
    need,
    read_rgb,
    scaled_size,
    seen_sizes,
)
from tasks.dense.suite import Facts, Split
from tasks.models.openmmlab.data_config import respects_orientation
from tasks.suites.coco import annotations as coco_annotations

if TYPE_CHECKING:
    from mmengine.config import Config

_SLACK = 2.0  # pixels; boxes of real annotations are rounded
ANNOTATIONS = "annotations/instances_val2017.json"
FOLDERS: Mapping[Split, str] = {"evaluation": "val2017", "calibration": "train2017"}


class CocoFolder:
    """Images of val2017 with their annotations for evaluation; images of train2017, without, for calibration.

    Raises:
        UsageError: something is missing under `root`, or the annotations cannot be used.
    """

    batch = 1  # images have many sizes
    classes = None

    def __init__(self, root: Path) -> None:
        self._root = root
        file = root / ANNOTATIONS
        folder = root / FOLDERS["evaluation"]
        need({file: "annotations of evaluation", folder: "images of evaluation"}, "coco", root)
        self._annotated = coco_annotations.read(file)
        self._evaluation = self._evaluation_files()
        self._training = TrainingImages(root, FOLDERS["calibration"])
        self._right: set[str] = set()  # what was checked and found to be so
        self._warn_of_boxes()

    def _evaluation_files(self) -> list[Path]:
        """Images lie where the file says, seen from their folder or, with that folder's name in it, from the root."""
        folder = self._root / FOLDERS["evaluation"]
        missing: list[str] = []
        found: dict[Path, str] = {}
        for image in self._annotated.images:
            name = image["file_name"]
            path = next((p for p in (folder / name, self._root / name) if is_file(p)), None)
            if path is None:
                missing.append(name)
            elif path in found:
                raise UsageError(
                    f"annotations {self._annotated.path} have two entries of 'images' for {path}, '{found[path]}' and "
                    f"'{name}'; leave one"
                )
            else:
                found[path] = name
        if missing:
            raise UsageError(
                f"annotations {self._annotated.path} name {len(missing)} images that are not in {folder}, {missing[0]} "
                "among them"
            )
        return list(found)

    def _warn_of_boxes(self) -> None:
        sizes = {image["id"]: (image["width"], image["height"]) for image in self._annotated.images}
        beyond = [
            place
            for place, entry in enumerate(self._annotated.annotations)
            for (x, y, w, h), (width, height) in [(entry["bbox"], sizes[entry["image_id"]])]
            if min(x, y) < -_SLACK or x + w > width + _SLACK or y + h > height + _SLACK
        ]
        if beyond:
            warnings.warn(
                f"annotations {self._annotated.path}: {len(beyond)} boxes reach beyond their images, annotations"
                f"[{beyond[0]}] among them; a box is [x, y, width, height]",
                stacklevel=2,
            )

    def count(self, split: Split) -> int:
        """Number of images."""
        return len(self._files(split))

    def _files(self, split: Split) -> list[Path]:
        return self._evaluation if split == "evaluation" else self._training.files

    def has_objects(self, count: int) -> bool:
        """Whether an object that counts is annotated on one of the first `count` images."""
        first = {image["id"] for image in self._annotated.images[:count]}
        return any(entry["image_id"] in first and not entry["iscrowd"] for entry in self._annotated.annotations)

    def identity(self) -> str:
        """Hash of what annotations and evaluation images hold; every image can be decoded."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return files_identity(self._root, self._evaluation, [self._annotated.path])

    def calibration_identity(self) -> str:
        """The same of the training images."""
        return self._training.identity

    def input_size(self, config: Config) -> tuple[int, int]:
        """What the config's test pipeline makes of a landscape picture."""
        divisor = int(config.model.get("data_preprocessor", {}).get("pad_size_divisor", 32))
        return scaled_size(config, (800, 1333), max(divisor, 32))

    def check_model(self, model: str, facts: Facts, *, masks: bool) -> None:
        """Check that all of the model's classes are annotated, images are as large as the annotations say and, with
        `masks`, that every object has one.

        Raises:
            UsageError: one is not, or does not fit; the message names it.
        """
        known, file = self._annotated.names, self._annotated.path
        missing = [name for name in facts.classes if name not in known]
        if missing:
            raise UsageError(
                f"model '{model}' knows the class '{missing[0]}', which annotations {file} do not have "
                f"({len(missing)} such of {len(facts.classes)}; there are {', '.join(known[:5])}"
                f"{', ...' if len(known) > 5 else ''}); name the data's classes as metainfo in its config's "
                "test_dataloader.dataset, or give the data that it was trained for"
            )
        others = [name for name in known if name not in facts.classes]
        if others:
            warnings.warn(
                f"model '{model}' does not know {len(others)} of the {len(known)} categories of annotations {file}, "
                f"'{others[0]}' among them; their objects do not count",
                stacklevel=2,
            )
        sizes = f"sizes {respects_orientation(facts.pipeline)}"
        if sizes not in self._right:
            self._check_sizes(facts)
        if masks and "masks" not in self._right:
            self._annotated.check_masks()
        self._right |= {sizes, "masks"} if masks else {sizes}

    def _check_sizes(self, facts: Facts) -> None:
        seen = seen_sizes(self._evaluation, facts.pipeline)
        for path, size, said in zip(self._evaluation, seen, self._annotated.sizes, strict=True):
            if size != said:
                raise UsageError(
                    f"image {path} is {size[1]}x{size[0]} (width x height), but annotations {self._annotated.path} say "
                    f"{said[1]}x{said[0]}; boxes would not fit it"
                )

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Image by number; see `file_reader`."""
        return file_reader("mmdet", split, self._files(split), pipeline)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation image (height, width, 3)."""
        return read_rgb(self._evaluation[index])

    def truth(self, count: int, facts: Facts) -> dict[str, Any]:
        """The first images as a COCO data set: images numbered from 1, the model's classes from 1 in its order.

        Categories are found by name. mmdet numbers classes in the order in which the annotation file lists those that
        the model knows, which is the same as long as file and model agree, and wrong labels where they do not.
        """
        images = self._annotated.images[:count]
        numbers = {image["id"]: place for place, image in enumerate(images, start=1)}
        ids = {category["name"]: category["id"] for category in self._annotated.categories}
        categories = {ids[name]: place for place, name in enumerate(facts.classes, start=1)}
        kept = [
            {**a, "id": 0, "image_id": numbers[a["image_id"]], "category_id": categories[a["category_id"]]}
            for a in self._annotated.annotations
            if a["image_id"] in numbers and a["category_id"] in categories
        ]
        return {
            "info": {},
            "licenses": [],
            "images": [{**image, "id": numbers[image["id"]]} for image in images],
            "categories": [{"id": place, "name": name} for place, name in enumerate(facts.classes, start=1)],
            "annotations": [{**annotation, "id": place} for place, annotation in enumerate(kept, start=1)],
        }
