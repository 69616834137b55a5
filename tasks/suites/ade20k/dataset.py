"""ADE20K's data in its own layout, or other data in the same: images/ and annotations/ with training/, validation/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    images_in,
    is_file,
    need,
    opened,
    read_rgb,
    scaled_size,
    seen_sizes,
)
from tasks.dense.suite import Facts, Split
from tasks.metrics.mean_iou import IGNORED
from tasks.models.openmmlab.data_config import respects_orientation

if TYPE_CHECKING:
    from mmengine.config import Config

PARENT = "ADEChallengeData2016"  # as the archive unpacks; it or the folder that holds it is the root
IMAGES: Mapping[Split, str] = {"evaluation": "images/validation", "calibration": "images/training"}
LABELS = "annotations/validation"
_THREADS = 8


class AdeFolder:
    """Validation images with their label maps for evaluation; training images, without, for calibration.

    Raises:
        UsageError: something is missing under `root`.
    """

    batch = 1  # images have many sizes
    classes = None

    def __init__(self, root: Path) -> None:
        self._root = root / PARENT if (root / PARENT).is_dir() else root
        folder = self._root / IMAGES["evaluation"]
        labels = self._root / LABELS
        need({folder: "images of evaluation", labels: "label maps of evaluation"}, "ade20k", self._root)
        self._evaluation = images_in(folder)
        self._training = TrainingImages(self._root, IMAGES["calibration"])
        self._labels = [labels / f"{path.stem}.png" for path in self._evaluation]
        missing = [path.name for path in self._labels if not is_file(path)]
        if missing:
            raise UsageError(f"{labels} lacks the label maps of {len(missing)} images, {missing[0]} among them")
        self._right: set[bool] = set()  # whether images are turned by EXIF data: where label maps have their sizes

    def count(self, split: Split) -> int:
        """Number of images."""
        return len(self._files(split))

    def _files(self, split: Split) -> list[Path]:
        return self._evaluation if split == "evaluation" else self._training.files

    def identity(self) -> str:
        """Hash of what evaluation images and label maps hold; each can be decoded."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return files_identity(self._root, [*self._evaluation, *self._labels])

    def calibration_identity(self) -> str:
        """The same of the training images."""
        return self._training.identity

    @cached_property
    def _found(self) -> list[tuple[tuple[int, int], NDArray[np.bool_]]]:
        """Of every label map height and width, and which of the labels 0 to 255 it has."""
        with ThreadPoolExecutor(_THREADS) as pool:
            maps = pool.map(_read_labels, self._labels)
            return [(found.shape, np.bincount(found.ravel(), minlength=256) > 0) for found in maps]

    def input_size(self, config: Config) -> tuple[int, int]:
        """The crops that the model was trained on, else what its test pipeline makes of a landscape picture."""
        crop = config.get("crop_size")
        return (int(crop[0]), int(crop[1])) if crop else scaled_size(config, (512, 512), 32)

    def check_model(self, model: str, facts: Facts, *, masks: bool) -> None:
        """Check that every label map is as large as its image and has no label that the model does not know.

        Raises:
            UsageError: one is not, or has; the message names it.
        """
        turned = respects_orientation(facts.pipeline)
        if turned not in self._right:
            sizes = seen_sizes(self._evaluation, facts.pipeline)
            for path, image, size, (found, _) in zip(self._labels, self._evaluation, sizes, self._found, strict=True):
                if found != size:
                    raise UsageError(
                        f"label map {path} is {found[1]}x{found[0]} (width x height), but its image {image} is "
                        f"{size[1]}x{size[0]}"
                    )
            self._right.add(turned)
        classes, first = facts.labels or facts.classes, int(facts.zero_is_none)
        who = "the data set" if facts.labels else "the model"
        for path, (_, present) in zip(self._labels, self._found, strict=True):
            highest = int(np.flatnonzero(present[:IGNORED]).max(initial=0)) - first
            if highest >= len(classes):
                raise UsageError(
                    f"label map {path} has label {highest}, but {who} knows {len(classes)} "
                    f"classes, 0 to {len(classes) - 1}{' (0 in the file being none)' if first else ''}"
                )

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Image by number; see `file_reader`."""
        return file_reader("mmseg", split, self._files(split), pipeline)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation image (height, width, 3)."""
        return read_rgb(self._evaluation[index])

    def label_map(self, index: int, facts: Facts) -> NDArray[np.uint8]:
        """The model's class of every pixel of an evaluation image, `IGNORED` where there is none.

        As mmseg has it: first 0 becomes none, where it does, then classes are found by name.

        Raises:
            UsageError: the file cannot be read.
        """
        numbers = np.arange(256, dtype=np.uint8)
        if facts.zero_is_none:  # 0 becomes IGNORED, the rest count from 0; IGNORED stays
            numbers = np.where(numbers == IGNORED, IGNORED, numbers - np.uint8(1)).astype(np.uint8)
        if facts.labels is not None:
            known = [facts.classes.index(name) if name in facts.classes else IGNORED for name in facts.labels]
            numbers = np.array([*known, *range(len(known), 256)], np.uint8)[numbers]
        return numbers[_read_labels(self._labels[index])]


def _read_labels(path: Path) -> NDArray[np.uint8]:
    with opened(path) as image:
        if image.mode not in {"L", "P"}:
            raise UsageError(f"label map {path} is not a picture of one 8-bit channel (its mode is {image.mode})")
        return np.asarray(image)
