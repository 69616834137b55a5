"""Which items the scenes of each split are made of. No item is in two of evaluation, and training or calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import DAMAGED_ARRAYS
from tasks.suites.embedded.dataset import FILE, damaged
from tasks.suites.embedded.fashion import load_split
from tasks.suites.embedded.scenes import Scenes

if TYPE_CHECKING:
    from pathlib import Path

EVALUATION_COUNT = 500  # scenes
_SEEDS = {"training": 0, "test": 1, "calibration": 2}
_STEP = 3  # between seeds of trainings, so that they meet no other split's


def training_scenes(data_root: Path, seed: int = 0) -> Scenes:
    """Scenes of the 60,000 original training items, for training the zoo; others for another `seed`.

    Raises:
        FileNotFoundError: the original files are not in `data_root`.
    """
    return Scenes(*load_split(data_root, "train"), _SEEDS["training"] + _STEP * seed)


def evaluation_scenes(file: Path = FILE) -> Scenes:
    """Scenes of the embedded 2,000 test items; the first `EVALUATION_COUNT` are the benchmark's."""
    return _embedded(file, "test")


def calibration_scenes(file: Path = FILE) -> Scenes:
    """Scenes of the embedded 512 training items, which the zoo was trained on, too."""
    return _embedded(file, "calibration")


def _embedded(file: Path, part: str) -> Scenes:
    try:
        with np.load(file, allow_pickle=False) as stored:
            images, labels = stored[f"{part}_images"], stored[f"{part}_labels"]
    except DAMAGED_ARRAYS as error:
        raise damaged(file, error) from None
    return Scenes(images, labels, _SEEDS[part])
