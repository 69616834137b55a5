"""ADE20K's data in its own layout, or other data in the same: images/ and annotations/ with training/, validation/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from tasks.dense_folder import file_reader, files_identity, images_in, need, read_rgb, scaled_size
from tasks.dense_metrics import IGNORED
from tasks.dense_suite import Facts, Split

if TYPE_CHECKING:
    from mmengine.config import Config

PARENT = "ADEChallengeData2016"  # as the archive unpacks; it or the folder that holds it is the root
IMAGES: Mapping[Split, str] = {"evaluation": "images/validation", "calibration": "images/training"}
LABELS = "annotations/validation"


class AdeFolder:
    """Validation images with their label maps for evaluation; training images, without, for calibration.

    Raises:
        UsageError: something is missing under `root`.
    """

    batch = 1  # images have many sizes
    classes = None

    def __init__(self, root: Path) -> None:
        self._root = root / PARENT if (root / PARENT).is_dir() else root
        folders = {self._root / folder: f"images of {split}" for split, folder in IMAGES.items()}
        need({**folders, self._root / LABELS: "label maps of evaluation"}, "ade20k", self._root)
        self._files = {split: images_in(self._root / folder) for split, folder in IMAGES.items()}
        self._labels = [self._root / LABELS / f"{path.stem}.png" for path in self._files["evaluation"]]
        missing = [path.name for path in self._labels if not path.is_file()]
        if missing:
            raise UsageError(
                f"{self._root / LABELS} lacks the label maps of {len(missing)} images, {missing[0]} among them"
            )

    def count(self, split: Split) -> int:
        """Number of images."""
        return len(self._files[split])

    def identity(self) -> str:
        """Hash of the names and sizes of all images and label maps."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return files_identity(self._root, (*self._files["evaluation"], *self._labels, *self._files["calibration"]))

    def input_size(self, config: Config) -> tuple[int, int]:
        """The crops that the model was trained on, else what its test pipeline makes of a landscape picture."""
        crop = config.get("crop_size")
        return (int(crop[0]), int(crop[1])) if crop else scaled_size(config, (512, 512), 32)

    def check_model(self, model: str, facts: Facts) -> None:
        """Check the first label map against the model's classes.

        Raises:
            UsageError: it has a label that the model does not know.
        """
        self.label_map(0, facts)

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Image by number; see `file_reader`."""
        return file_reader("mmseg", split, self._files[split], pipeline)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation image (height, width, 3)."""
        return read_rgb(self._files["evaluation"][index])

    def label_map(self, index: int, facts: Facts) -> NDArray[np.uint8]:
        """Class of every pixel of an evaluation image, `IGNORED` where none is annotated.

        Raises:
            UsageError: the file cannot be read or has a label that the model does not know.
        """
        from PIL import Image

        path = self._labels[index]
        try:
            with Image.open(path) as image:
                labels = np.asarray(image)
        except OSError as error:
            raise UsageError(f"label map {path} cannot be read: {error}") from None
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise UsageError(f"label map {path} is no picture of one 8-bit channel")
        if facts.zero_is_none:  # 0 becomes IGNORED, the rest count from 0; IGNORED stays
            labels = np.where(labels == IGNORED, IGNORED, labels - np.uint8(1)).astype(np.uint8)
        highest = labels[labels != IGNORED].max(initial=0)
        if highest >= len(facts.classes):
            raise UsageError(
                f"label map {path} has label {highest}, but the model knows {len(facts.classes)} classes, 0 to "
                f"{len(facts.classes) - 1}{' (0 in the file being none)' if facts.zero_is_none else ''}"
            )
        return labels
