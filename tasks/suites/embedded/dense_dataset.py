"""The scenes of the embedded suite as data of the dense tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.dense.suite import Facts, Split
from tasks.files import coco_format as coco
from tasks.suites.embedded.dataset import FILE
from tasks.suites.embedded.scene_splits import EVALUATION_COUNT, calibration_scenes, evaluation_scenes
from tasks.suites.embedded.scenes import SIZE, Scene

if TYPE_CHECKING:
    from mmengine.config import Config

CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FRAME = (SIZE, SIZE)
CALIBRATION_COUNT = 512  # scenes; there are as many as one likes
_HASHED = 20  # scenes of each split: enough to notice any change of what makes them


class SceneData:
    """Scenes for `detection` (ten classes) or `segmentation` (background too), which models see as they are."""

    batch = 20

    def __init__(self, task: str) -> None:
        if not FILE.is_file():
            raise UsageError(
                f"embedded data {FILE} are missing; `python -m tasks.suites.embedded.make_subset` makes them"
            )
        self._detection = task == "detection"
        self.classes = CLASS_NAMES if self._detection else ("background", *CLASS_NAMES)

        self._evaluation = cache(evaluation_scenes().__getitem__)

    def count(self, split: Split) -> int:
        """Number of scenes."""
        return EVALUATION_COUNT if split == "evaluation" else CALIBRATION_COUNT

    def identity(self) -> str:
        """Hash of the items and of some scenes of them."""
        whole = hashlib.sha256(FILE.read_bytes())
        for scene in (*evaluation_scenes().take(0, _HASHED), *calibration_scenes().take(0, _HASHED)):
            whole.update(scene.image.tobytes() + scene.label_map.tobytes())
        return hashlib.sha256(whole.digest() + f"{EVALUATION_COUNT} {self.classes}".encode()).hexdigest()[:16]

    def calibration_identity(self) -> str:
        """Empty: `identity` covers all scenes."""
        return ""

    def input_size(self, config: Config) -> tuple[int, int]:
        """The scenes'."""
        return FRAME

    def check_model(self, model: str, facts: Facts, *, masks: bool) -> None:
        """A model must know the scenes' classes, in any order.

        Raises:
            UsageError: it knows others.
        """
        if len(facts.classes) != len(self.classes):
            raise UsageError(f"model '{model}' knows {len(facts.classes)} classes, but scenes have {len(self.classes)}")
        unknown = [name for name in facts.classes if name not in self.classes]
        if unknown:
            raise UsageError(
                f"model '{model}' knows the class '{unknown[0]}' ({len(unknown)} such of {len(facts.classes)}), but "
                f"scenes have {', '.join(self.classes)}"
            )

    def has_objects(self, count: int) -> bool:
        """Every scene has some."""
        return count > 0

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Scene by number, as mmdet's and mmseg's pipelines hand images over; `pipeline` is for files."""
        from tasks.models.openmmlab.samples import detection_sample, segmentation_sample

        scene: Callable[[int], Scene] = self._evaluation if split == "evaluation" else calibration_scenes().__getitem__
        sample = detection_sample if self._detection else segmentation_sample

        def read(index: int) -> dict[str, Any]:
            check_not_sealed(f"{split} images")
            return {"inputs": torch.from_numpy(scene(index).image), "data_samples": sample(FRAME)}

        return read

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation scene (height, width, 3)."""
        return np.ascontiguousarray(self._evaluation(index).image.transpose(1, 2, 0))

    def truth(self, count: int, facts: Facts) -> dict[str, Any]:
        """The first evaluation scenes as a COCO data set, classes numbered from 1."""
        numbers = np.array([facts.classes.index(name) for name in self.classes])
        scenes = (replace(scene, classes=numbers[scene.classes]) for scene in map(self._evaluation, range(count)))
        return coco.ground_truth(scenes, FRAME, facts.classes)

    def label_map(self, index: int, facts: Facts) -> NDArray[np.uint8]:
        """Class of every pixel of an evaluation scene."""
        numbers = np.array([facts.classes.index(name) for name in self.classes], np.uint8)
        return numbers[self._evaluation(index).label_map]
