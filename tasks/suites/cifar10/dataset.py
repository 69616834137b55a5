"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32 in ten classes.

Two forms are read: the folder `cifar-10-batches-py` of the original, through torchvision, and `cifar10_jpeg.npz`, one
array of JPEG (or PNG) files with offsets, labels, split and class names. JPEG's losses change accuracies a little, so
the two have different identities. No image comes with the project.

`nox -s data` downloads the original once.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import torch

from harness.api.errors import DAMAGED_ARRAYS, UsageError, first_line
from harness.api.sealing import check_not_sealed
from harness.io.files import reason
from tasks.files.content import hash_files, open_regular
from tasks.files.downloads import downloading, downloads
from tasks.files.images import read_rgb
from tasks.models.class_order import in_turn
from tasks.models.preprocessing import Preprocessing
from tasks.suites.cifar10.architectures import CLASSES, IMAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.api.contracts import VisionModel

PACKED, ORIGINAL = "cifar10_jpeg.npz", "cifar-10-batches-py"
# Statistics of the 50,000 training images in [0, 1], as everyone uses them.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
INPUT = Preprocessing(input_shape=(3, IMAGE_SIZE, IMAGE_SIZE), mean=MEAN, std=STD)
BATCH = 100


class Split(Protocol):
    """One split of the data set as it lies on disk."""

    labels: NDArray[np.int64]

    def images(self, indices: Iterable[int]) -> NDArray[np.uint8]:
        """The images at `indices`, (n, 32, 32, 3)."""


def open_splits(root: Path | None) -> tuple[Split, Split, str]:
    """Training split, test split and a hash of both (16 hexadecimal digits).

    Args:
        root: the folder that holds one of the two forms; None: where `download` puts it.

    Raises:
        UsageError: neither form is there, or it is damaged.
    """
    folder = root or default_root()
    try:
        if (folder / PACKED).is_file():
            return _packed(folder / PACKED)
        if (folder / ORIGINAL).is_dir():
            return _original(folder)
    except OSError as error:
        raise UsageError(f"CIFAR-10 in {folder} cannot be read: {reason(error)}") from None
    raise UsageError(
        f"suite 'cifar10' finds neither {ORIGINAL}/ nor {PACKED} in {folder}; name their folder with --data-root, or "
        "download the images once with `nox -s data`"
    )


def _packed(file: Path) -> tuple[Split, Split, str]:
    try:
        with open_regular(file) as opened:
            content, offsets, labels, train = _arrays(opened)
    except DAMAGED_ARRAYS as error:
        raise UsageError(f"CIFAR-10 file {file} is damaged ({error}); copy it again") from None
    hash_files(file.parent, [file], _undecodable)
    files = [memoryview(content.data)[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    digest = hashlib.sha256(content.data)
    for array in (offsets, labels, train):
        digest.update(np.ascontiguousarray(array).tobytes())
    training, test = (
        _Files([files[i] for i in np.flatnonzero(chosen)], labels[chosen].astype(np.int64))
        for chosen in (train.astype(bool), ~train.astype(bool))
    )
    return training, test, digest.hexdigest()[:16]


def _arrays(file: BinaryIO) -> list[NDArray[Any]]:
    """Files of all images one after the other, where each begins, their classes, and which are for training."""
    with np.load(file, allow_pickle=False) as stored:
        content, offsets, labels, train = (stored[key] for key in ("jpeg", "offsets", "label", "train"))
    if not len(offsets) == len(labels) + 1 == len(train) + 1 or offsets[-1] != len(content):
        raise ValueError("its arrays do not fit together")
    if offsets[0] != 0 or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise ValueError("its images do not follow one another")
    if not np.isin(labels, np.arange(CLASSES)).all():
        raise ValueError(f"its labels are not 0 to {CLASSES - 1}")
    return [content, offsets, labels, train]


def _undecodable(file: BinaryIO) -> str:
    """A check for `hash_files`: which image in a packed file is not of 32 x 32 pixels."""
    content, offsets, _, _ = _arrays(file)
    for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        try:
            size = read_rgb(io.BytesIO(memoryview(content.data)[start:end])).size
        except Exception as error:  # nearly anything, on a damaged image
            wrong = first_line(error)
        else:
            wrong = "" if size == (IMAGE_SIZE, IMAGE_SIZE) else f"it has {size[0]}x{size[1]} pixels"
        if wrong:
            return f"image {number} in it is damaged ({wrong}); copy the file again"
    return ""


class _Files:
    """Encoded images, decoded when they are asked for."""

    def __init__(self, files: Sequence[memoryview], labels: NDArray[np.int64]) -> None:
        self._files, self.labels = files, labels

    def images(self, indices: Iterable[int]) -> NDArray[np.uint8]:
        return np.stack([np.asarray(read_rgb(io.BytesIO(self._files[i]))) for i in indices])


def _original(root: Path) -> tuple[Split, Split, str]:
    from torchvision.datasets import CIFAR10

    try:
        training, test = (
            _Array(part.data, np.asarray(part.targets, dtype=np.int64))
            for part in (CIFAR10(str(root), train=train) for train in (True, False))
        )
    except (RuntimeError, EOFError):  # torchvision's word for a file that is missing or has another MD5
        raise UsageError(
            f"{root / ORIGINAL} is incomplete or damaged; delete it and download it again, or copy it"
        ) from None
    digest = hashlib.sha256()
    for part in (training, test):
        digest.update(part.data.tobytes() + part.labels.tobytes())
    return training, test, digest.hexdigest()[:16]


class _Array:
    """Images in memory."""

    def __init__(self, data: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.data, self.labels = data, labels

    def images(self, indices: Iterable[int]) -> NDArray[np.uint8]:
        return self.data[list(indices)]


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 32, 32, 3) to normalised float32 (n, 3, 32, 32)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((pixels - mean) / std).contiguous()


class CifarData:
    """Evaluation images (the test split, classes in turn) and calibration images (the training split).

    Raises:
        UsageError: see `open_splits`.
    """

    classes = CLASSES
    class_names: tuple[str, ...] = ()

    def __init__(self, root: Path | None = None) -> None:
        self._training, self._test, self._identity = open_splits(root)

    @cached_property
    def _order(self) -> list[int]:
        return in_turn(self._test.labels)

    def __len__(self) -> int:
        """Number of evaluation images."""
        return len(self._test.labels)

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return len(self._training.labels)

    def identity(self) -> str:
        """Hash of the data and of the preprocessing constants."""
        return hashlib.sha256(f"{self._identity} {MEAN} {STD}".encode()).hexdigest()[:16]

    def calibration_identity(self) -> str:
        """Empty: `identity` covers both splits."""
        return ""

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 3, 32, 32) and labels (b,), the first `count`; the same for any `model`."""
        check_not_sealed("evaluation images")
        for start in range(0, count, BATCH):
            chosen = self._order[start : min(start + BATCH, count)]
            yield normalise(self._test.images(chosen)), torch.from_numpy(self._test.labels[chosen])

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """The training images at `indices` (n, 3, 32, 32); the same for any `model`."""
        check_not_sealed("calibration images")
        return normalise(self._training.images(indices))


def default_root() -> Path:
    """Folder of the data when the user names none.

    Raises:
        UsageError: the user has no home folder.
    """
    return downloads() / "cifar10"


def download() -> Path:
    """Fetch the original (163 MiB) with torchvision unless it is there; return its folder.

    Raises:
        UsageError: it cannot be had, or what came is damaged.
    """
    from torchvision.datasets import CIFAR10

    root = default_root()
    with downloading("CIFAR-10", f"put its folder cifar-10-batches-py into {root}"):
        CIFAR10(str(root), download=True)
    return root


def main(argv: Sequence[str] | None = None) -> None:
    """Download the data set."""
    parser = argparse.ArgumentParser(
        prog="data",
        description="Download CIFAR-10 to ~/.cache/dfqbench/cifar10 unless it is there; for data elsewhere, bench has "
        "--data-root.",
    )
    parser.parse_args(argv)
    try:
        print(download())  # noqa: T201
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
