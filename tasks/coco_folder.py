"""COCO's data in its own layout, or other data in the same: annotations/, train2017/ and val2017/ under one root."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from tasks.dense_folder import file_reader, files_identity, images_in, need, read_rgb, scaled_size
from tasks.dense_suite import Facts, Split

if TYPE_CHECKING:
    from mmengine.config import Config

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
        self._file = root / ANNOTATIONS
        folders = {root / folder: f"images of {split}" for split, folder in FOLDERS.items()}
        need({self._file: "annotations of evaluation", **folders}, "coco", root)
        try:
            self._annotated: dict[str, Any] = json.loads(self._file.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"annotations {self._file} cannot be read as JSON: {error}") from None
        for part in ("images", "annotations", "categories"):
            if not isinstance(self._annotated, dict) or not self._annotated.get(part):
                raise UsageError(f"annotations {self._file} have no '{part}'; a COCO instances file is needed")
        self._files: dict[Split, list[Path]] = {
            "evaluation": [root / FOLDERS["evaluation"] / i["file_name"] for i in self._annotated["images"]],
            "calibration": images_in(root / FOLDERS["calibration"]),
        }
        missing = [path.name for path in self._files["evaluation"] if not path.is_file()]
        if missing:
            raise UsageError(
                f"annotations {self._file} name {len(missing)} images that are not in {root / FOLDERS['evaluation']}, "
                f"{missing[0]} among them"
            )

    def count(self, split: Split) -> int:
        """Number of images."""
        return len(self._files[split])

    def identity(self) -> str:
        """Hash of the annotations and of the names and sizes of all images."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        files = (path for split in FOLDERS for path in self._files[split])
        return files_identity(self._root, files, [self._file.read_bytes()])

    def input_size(self, config: Config) -> tuple[int, int]:
        """What the config's test pipeline makes of a landscape picture."""
        divisor = int(config.model.get("data_preprocessor", {}).get("pad_size_divisor", 32))
        return scaled_size(config, (800, 1333), max(divisor, 32))

    def check_model(self, model: str, facts: Facts) -> None:
        """Check that all of the model's classes are annotated.

        Raises:
            UsageError: one is not; it is another data set's model.
        """
        known = [category["name"] for category in self._annotated["categories"]]
        missing = [name for name in facts.classes if name not in known]
        if missing:
            raise UsageError(
                f"model '{model}' knows the class '{missing[0]}', which annotations {self._file} do not have "
                f"({len(missing)} such of {len(facts.classes)}); name the data's classes as metainfo in its config's "
                "test_dataloader.dataset, or give the data that it was trained for"
            )

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Image by number; see `file_reader`."""
        return file_reader("mmdet", split, self._files[split], pipeline)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation image (height, width, 3)."""
        return read_rgb(self._files["evaluation"][index])

    def truth(self, count: int, facts: Facts) -> dict[str, Any]:
        """The first images as a COCO data set: images numbered from 1, the model's classes from 1 in its order.

        mmdet numbers classes in the order in which the annotation file lists those that the model knows.
        """
        images = self._annotated["images"][:count]
        listed = [c for c in self._annotated["categories"] if c["name"] in facts.classes]
        numbers = {image["id"]: place for place, image in enumerate(images, start=1)}
        categories = {category["id"]: place for place, category in enumerate(listed, start=1)}
        kept = [
            {**a, "id": 0, "image_id": numbers[a["image_id"]], "category_id": categories[a["category_id"]]}
            for a in self._annotated["annotations"]
            if a["image_id"] in numbers and a["category_id"] in categories
        ]
        return {
            "info": {},
            "licenses": [],
            "images": [{**image, "id": numbers[image["id"]]} for image in images],
            "categories": [{"id": categories[c["id"]], "name": c["name"]} for c in listed],
            "annotations": [{**annotation, "id": place} for place, annotation in enumerate(kept, start=1)],
        }
