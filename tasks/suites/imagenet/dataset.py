"""Classification data in ImageNet's folder layout: `root/val/CLASS/*.jpeg`, and `root/train/CLASS/*.jpeg` for methods
that are given images.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Dataset

from harness.api.errors import UsageError, first_line
from harness.api.sealing import check_not_sealed
from harness.io.files import reason
from tasks.files import content
from tasks.files.images import SUFFIXES, incomplete, read_rgb, undecodable
from tasks.models.class_order import in_turn
from tasks.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from harness.api.contracts import VisionModel

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
    """The splits under `root`; `train` is looked at only when it is needed.

    Files are those that torchvision's ImageFolder takes: in folders within a class's folder too, links followed.
    Classes are numbered in the order of their folders' names, as for ImageNet.

    Raises:
        UsageError: the layout under `root` is not usable; the message says what is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        if not _is_folder(root):
            raise UsageError(f"data root {root} is not a folder; give one that holds {EVALUATION}/ with class folders")
        self.class_names = tuple(self._class_names(EVALUATION))
        self._evaluation = _Images(root / EVALUATION, self.class_names, undecodable, in_turn)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Number of evaluation images."""
        return len(self._evaluation.files)

    def _class_names(self, split: str) -> list[str]:
        folder = self._root / split
        if not _is_folder(folder):
            raise UsageError(f"data root {self._root} has no folder {split}/; images belong in {split}/CLASS/")
        names = [entry.name for entry in _entries(folder) if _is_folder(entry) and not entry.name.startswith(".")]
        if not names:
            raise UsageError(f"{folder} has no class folders; images belong in {split}/CLASS/")
        return sorted(names)

    @cached_property
    def _calibration(self) -> _Images:
        if not _is_folder(self._root / CALIBRATION):
            raise UsageError(
                f"data root {self._root} has no folder {CALIBRATION}/, from which methods that are not data-free take "
                "their images; add it, or run data-free methods alone, with --no-references"
            )
        names = tuple(self._class_names(CALIBRATION))
        different = sorted(set(names) ^ set(self.class_names))
        if different:
            raise UsageError(
                f"{EVALUATION}/ and {CALIBRATION}/ in {self._root} hold different classes: '{different[0]}' is in only "
                f"one of them ({len(different)} such)"
            )
        return _Images(self._root / CALIBRATION, names, incomplete, _as_listed)

    def identity(self) -> str:
        """Hash of the evaluation images: their classes, paths and content, as they are at the first call.

        Raises:
            UsageError: an image is damaged or cannot be read.
        """
        return self._evaluation.identity

    def calibration_identity(self) -> str:
        """The same of the training images. They are not decoded, of which there are many and few are used.

        Raises:
            UsageError: there are none, or one is damaged or cannot be read.
        """
        return self._calibration.identity

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 3, h, w) and labels (b,), the first `count`, in a fixed order.

        Raises:
            UsageError: an image is not what it was when `identity` was first asked for.
        """
        check_not_sealed("evaluation images")
        yield from self._evaluation.batches(range(count), model)

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return len(self._calibration.files)

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """The training images at `indices` (n, 3, h, w), prepared as for evaluation."""
        import torch

        check_not_sealed("calibration images")
        return torch.cat([images for images, _ in self._calibration.batches(indices, model)])


class _Images:
    """The images of one split, in the order that `order` makes of their labels."""

    def __init__(
        self,
        folder: Path,
        class_names: Sequence[str],
        check: content.Check,
        order: Callable[[list[int]], Sequence[int]],
    ) -> None:
        self._folder, self._class_names, self._check = folder, class_names, check
        files = [
            LabelledFile(path, label) for label, name in enumerate(class_names) for path in image_paths(folder / name)
        ]
        if not files:
            raise UsageError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.files = [files[i] for i in order([file.label for file in files])]

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of every file."""
        return content.hash_files(self._folder, [file.path for file in self.files], self._check)

    @cached_property
    def identity(self) -> str:
        """Hash of class names, paths and content."""
        return content.identity(self._folder, [file.path for file in self.files], self.hashes, self._class_names)

    def batches(self, indices: Sequence[int], model: VisionModel) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the files at `indices`."""
        workers = min(_MAX_WORKERS, os.cpu_count() or 1, len(indices) // _IMAGES_PER_WORKER)
        transform = transform_for(Preprocessing.of(model.net))
        chosen = _Files([(self.files[i], self.hashes[i]) for i in indices], transform)
        try:
            yield from DataLoader(chosen, BATCH, num_workers=workers)
        except UsageError as error:
            # A worker process puts its traceback before the sentence.
            sentence = str(error).rstrip().splitlines()[-1]
            raise UsageError(sentence.removeprefix(f"{UsageError.__module__}.{UsageError.__name__}: ")) from None


def _as_listed(labels: list[int]) -> Sequence[int]:
    return range(len(labels))


def image_paths(folder: Path) -> list[Path]:
    """Paths of all images in `folder` and in the folders in it, in order; links to files and folders are followed.

    Raises:
        UsageError: a folder cannot be read, or a link leads nowhere.
    """
    return sorted(_walk(folder, ()))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that holds it
        return
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(folder / entry.name, (*above, here))
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            yield folder / entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be read: {reason(error)}") from None
    for entry in entries:
        if entry.is_symlink():
            _is_folder(entry)
    return entries


def _is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Whether there is a folder at `path`, or a link to one.

    Raises:
        UsageError: a link leads nowhere, or the file system does not tell.
    """
    try:
        if isinstance(path, os.DirEntry) and not path.is_symlink():
            return path.is_dir()  # known without asking again
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UsageError(
                f"{os.fspath(path)} is a symbolic link to what does not exist; remove or mend it"
            ) from None
        return False
    except OSError as error:
        raise UsageError(f"{os.fspath(path)} cannot be read: {reason(error)}") from None


def transform_for(preprocessing: Preprocessing) -> Callable[[object], Tensor]:
    """Evaluation transform of timm: a PIL image to a normalised (3, h, w) tensor."""
    from timm.data import create_transform

    config = asdict(preprocessing)
    made: Callable[[object], Tensor] = create_transform(
        input_size=config.pop("input_shape"), is_training=False, **config
    )
    return made


class _Files(Dataset["tuple[Tensor, int]"]):
    """Image files, each with the hash that it must have, read and transformed one by one."""

    def __init__(self, files: list[tuple[LabelledFile, str]], transform: Callable[[object], Tensor]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, expected = self._files[index]
        try:
            with content.open_regular(file.path) as opened:
                raw = opened.read()
        except OSError as error:
            raise UsageError(f"image {file.path} cannot be read: {reason(error)}") from None
        if hashlib.sha256(raw).hexdigest() != expected:
            raise UsageError(f"image {file.path} was changed since the run was planned; run the command again")
        try:
            return self._transform(read_rgb(BytesIO(raw))), file.label
        except Exception as error:  # nearly anything, on a damaged file
            raise UsageError(f"image {file.path} cannot be read: {first_line(error)}") from None
