"""The part of Fashion-MNIST that is kept in the repository, as evaluation and calibration data."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.errors import DAMAGED_ARRAYS, UsageError
from harness.api.sealing import check_not_sealed
from tasks.suites.embedded.architectures import CLASSES, IMAGE_SIZE, MEAN, STD
from tasks.suites.embedded.fashion import normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.api.contracts import VisionModel

FILE = Path(__file__).parent / "data" / "fashion_mnist_subset.npz"
BATCH = 100


def damaged(file: Path, error: Exception) -> UsageError:
    """What to raise when the embedded data cannot be read."""
    return UsageError(
        f"embedded data {file} are damaged ({error}); `python -m tasks.suites.embedded.make_subset` makes them anew"
    )


class EmbeddedData:
    """Evaluation and calibration images of the embedded suite; image i has class i % 10."""

    classes = CLASSES
    class_names: tuple[str, ...] = ()

    def __init__(self, file: Path = FILE) -> None:
        if not file.is_file():
            raise UsageError(
                f"embedded data {file} are missing; `python -m tasks.suites.embedded.make_subset` makes them"
            )
        self._file = file

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                return {
                    f"{part}_{kind}": values
                    for part in ("test", "calibration")
                    for kind, values in (
                        ("images", normalise(stored[f"{part}_images"])),
                        ("labels", stored[f"{part}_labels"].astype(np.int64)),
                    )
                }
        except DAMAGED_ARRAYS as error:
            raise damaged(self._file, error) from None

    def __len__(self) -> int:
        """Number of evaluation images."""
        return len(self._arrays["test_labels"])

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return len(self._arrays["calibration_labels"])

    def identity(self) -> str:
        """Hash of the file and of the preprocessing constants."""
        constants = repr((IMAGE_SIZE, MEAN, STD)).encode()
        return hashlib.sha256(self._file.read_bytes() + constants).hexdigest()[:16]

    def calibration_identity(self) -> str:
        """Empty: `identity` covers both splits."""
        return ""

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 1, 32, 32) and labels (b,), the first `count`; the same for any `model`."""
        check_not_sealed("evaluation images")
        import torch

        images, labels = (torch.from_numpy(self._arrays[f"test_{kind}"][:count]) for kind in ("images", "labels"))
        yield from zip(images.split(BATCH), labels.split(BATCH), strict=True)

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """The training images at `indices` (n, 1, 32, 32); the same for any `model`."""
        check_not_sealed("calibration images")
        import torch

        return torch.from_numpy(self._arrays["calibration_images"])[list(indices)]
