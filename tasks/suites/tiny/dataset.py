"""Random images, to see in seconds whether a plugin does as it should. Numbers of this suite mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.api.sealing import check_not_sealed
from tasks.suites.tiny.zoo import CLASSES, MEAN, SHAPE, STD

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.contracts import VisionModel

IMAGES, CALIBRATION = 60, 60
BATCH = 20


class TinyData:
    """Smooth random fields with random labels; image i has class i % 5."""

    classes = CLASSES
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of evaluation images."""
        return IMAGES

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return CALIBRATION

    def identity(self) -> str:
        """Name of the recipe, which alone makes the images."""
        return "tiny-1"

    def calibration_identity(self) -> str:
        """Empty: `identity` covers both splits."""
        return ""

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 1, 16, 16) and labels (b,), the first `count`."""
        check_not_sealed("evaluation images")
        labels = torch.arange(count) % CLASSES
        yield from zip(_fields(IMAGES, seed=1)[:count].split(BATCH), labels.split(BATCH), strict=True)

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """Images at `indices` of the pool (n, 1, 16, 16)."""
        check_not_sealed("calibration images")
        return _fields(CALIBRATION, seed=2)[list(indices)]


def _fields(count: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear") - MEAN) / STD
