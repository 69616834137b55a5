"""Classification data in ImageNet's folder layout: `root/train/CLASS/*.jpeg`, `root/val/CLASS/*.jpeg`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Dataset

from harness.contracts import check_not_sealed
from harness.errors import UsageError
from tasks.class_order import in_turn
from tasks.timm_models import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from harness.contracts import VisionModel

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
EVALUATION, CALIBRATION = "val", "train"
BATCH = 50
_MAX_WORKERS = 8
_IMAGES_PER_WORKER = 200  # fewer than this are read faster than a worker process starts


@dataclass(frozen=True)
class LabelledFile:
    """One image file and its class index."""

    path: Path
    label: int


class ImageFolder:
    """The two splits under `root`. Classes are numbered in the order of their folders' names, as for ImageNet.

    Raises:
        UsageError: the layout under `root` is not usable; the message says what is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        if not root.is_dir():
            raise UsageError(f"data root {root} is not a folder; give one that holds {CALIBRATION}/ and {EVALUATION}/")
        names = {split: self._class_names(split) for split in (EVALUATION, CALIBRATION)}
        different = sorted(set(names[EVALUATION]) ^ set(names[CALIBRATION]))
        if different:
            raise UsageError(
                f"{EVALUATION}/ and {CALIBRATION}/ in {root} hold different classes: '{different[0]}' is in only one "
                f"of them ({len(different)} such)"
            )
        self._names = names[EVALUATION]
        for split in names:
            if next(self._files_in(split), None) is None:
                raise UsageError(f"{root / split} holds no images ({', '.join(sorted(SUFFIXES))})")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._names)

    def __len__(self) -> int:
        """Number of evaluation images."""
        return len(self._evaluation)

    def _class_names(self, split: str) -> list[str]:
        folder = self._root / split
        if not folder.is_dir():
            raise UsageError(
                f"data root {self._root} has no folder {split}/; it needs {CALIBRATION}/ and {EVALUATION}/"
            )
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not names:
            raise UsageError(f"{folder} has no class folders; images belong in {split}/CLASS/")
        return names

    def _files_in(self, split: str) -> Iterator[LabelledFile]:
        for label, name in enumerate(self._names):
            for path in sorted((self._root / split / name).rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    yield LabelledFile(path, label)

    @cached_property
    def _evaluation(self) -> list[LabelledFile]:
        """Class-interleaved, so that any first part is as balanced as can be."""
        files = list(self._files_in(EVALUATION))
        return [files[i] for i in in_turn([file.label for file in files])]

    @cached_property
    def _calibration(self) -> list[LabelledFile]:
        return list(self._files_in(CALIBRATION))

    def identity(self) -> str:
        """Hash of the relative paths and sizes of all images of both splits, as they are at the first call."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256()
        for file in chain(self._evaluation, self._calibration):
            digest.update(f"{file.path.relative_to(self._root).as_posix()} {file.path.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 3, h, w) and labels (b,), the first `count`, in a fixed order."""
        check_not_sealed("evaluation images")
        yield from self._batches(self._evaluation[:count], model)

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return len(self._calibration)

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """The training images at `indices` (n, 3, h, w), prepared as for evaluation."""
        import torch

        check_not_sealed("calibration images")
        files = [self._calibration[i] for i in indices]
        return torch.cat([images for images, _ in self._batches(files, model)])

    @staticmethod
    def _batches(files: list[LabelledFile], model: VisionModel) -> Iterator[tuple[Tensor, Tensor]]:
        workers = min(_MAX_WORKERS, os.cpu_count() or 1, len(files) // _IMAGES_PER_WORKER)
        transform = transform_for(Preprocessing.of(model.net))
        try:
            yield from DataLoader(_Files(files, transform), BATCH, num_workers=workers)
        except UsageError as error:
            # A worker process puts its traceback before the sentence.
            sentence = str(error).rstrip().splitlines()[-1]
            raise UsageError(sentence.removeprefix(f"{UsageError.__module__}.{UsageError.__name__}: ")) from None


def transform_for(preprocessing: Preprocessing) -> Callable[[object], Tensor]:
    """Evaluation transform of timm: a PIL image to a normalised (3, h, w) tensor."""
    from timm.data import create_transform

    config = asdict(preprocessing)
    return create_transform(input_size=config.pop("input_shape"), is_training=False, **config)


class _Files(Dataset["tuple[Tensor, int]"]):
    """Image files read and transformed one by one."""

    def __init__(self, files: list[LabelledFile], transform: Callable[[object], Tensor]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file = self._files[index]
        try:
            with Image.open(file.path) as image:
                return self._transform(image.convert("RGB")), file.label
        except OSError as error:
            raise UsageError(f"image {file.path} cannot be read: {error}") from None
