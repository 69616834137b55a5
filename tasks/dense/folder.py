"""Image files of the dense tasks' on-disk data sets: found, identified, and read as the models want them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import UsageError, first_line
from harness.api.sealing import check_not_sealed
from harness.io.files import reason
from tasks.dense.suite import Split
from tasks.files.content import hash_files, identity, open_regular, signature
from tasks.files.images import FORMATS, SUFFIXES, incomplete, undecodable
from tasks.models.openmmlab.data_config import image_pipeline, respects_orientation
from tasks.models.openmmlab.models import Library

if TYPE_CHECKING:
    from mmengine.config import Config
    from PIL.Image import Image

_ORIENTATION = 274  # EXIF tag
_THREADS = 8
_SIZES = ("scale", "scale_factor", "size", "crop_size")  # of a step of a pipeline


def need(paths: Mapping[Path, str], suite: str, root: Path) -> None:
    """Check that everything is where it is expected.

    Args:
        paths: what must be there -> what it is.
        suite: whose data they are.
        root: the data root that the user gave.

    Raises:
        UsageError: something is missing; the message says what else is, too.
    """
    if not (_exists(root) and root.is_dir()):
        raise UsageError(f"data root {root} is not a folder; suite '{suite}' expects {_list(paths, root)} in it")
    missing = {path: what for path, what in paths.items() if not _exists(path)}
    if missing:
        raise UsageError(f"data root {root} lacks {_list(missing, root)}; suite '{suite}' needs that to run")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UsageError(f"{path} cannot be looked at: {reason(error)}") from None


def _list(paths: Mapping[Path, str], root: Path) -> str:
    return ", ".join(f"{path.relative_to(root).as_posix()} ({what})" for path, what in paths.items())


def images_in(folder: Path) -> list[Path]:
    """Image files in `folder`, by name.

    Raises:
        UsageError: there is none, or the folder cannot be read.
    """
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be read: {reason(error)}") from None
    if not found:
        raise UsageError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def is_file(path: Path) -> bool:
    """Whether there is something at `path`.

    Raises:
        UsageError: there is, but it is not a regular file, or cannot be looked at.
    """
    try:
        signature(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be used: {reason(error)}") from None
    return True


def files_identity(root: Path, images: Sequence[Path], others: Sequence[Path] = ()) -> str:
    """Hash of what all files hold and of their places under `root`: 16 hexadecimal digits.

    Raises:
        UsageError: a file cannot be read, or one of `images` cannot be decoded; the first one is named.
    """
    hashes = [*hash_files(root, images, undecodable), *hash_files(root, others)]
    return identity(root, [*images, *others], hashes)


class TrainingImages:
    """Images in `folder` of the data root. They need not be there as long as no method is given any."""

    def __init__(self, root: Path, folder: str) -> None:
        self._root, self._folder = root, folder

    @cached_property
    def files(self) -> list[Path]:
        """By name.

        Raises:
            UsageError: there are none.
        """
        if not _exists(self._root / self._folder):
            raise UsageError(
                f"data root {self._root} has no {self._folder}/ (images of calibration), from which methods that are "
                "not data-free take their images; add it, or run data-free methods alone, with --no-references"
            )
        return images_in(self._root / self._folder)

    @cached_property
    def identity(self) -> str:
        """Hash of their places and content. They are not decoded, of which there are many and few are used.

        Raises:
            UsageError: there are none, or one is damaged or cannot be read.
        """
        return identity(self._root, self.files, hash_files(self._root, self.files, incomplete))


def seen_sizes(files: Sequence[Path], pipeline: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Height and width of images as a config's test pipeline loads them, from the heads of the files.

    Raises:
        UsageError: an image cannot be read, or its EXIF data turn it, but not for this pipeline; the message names it.
    """
    turns = respects_orientation(pipeline)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: _seen_size(path, turns=turns), files))


def _seen_size(path: Path, *, turns: bool) -> tuple[int, int]:
    with opened(path) as image:
        width, height = image.size
        orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9) and not turns:
        raise UsageError(
            f"image {path} is to be turned (EXIF orientation {orientation}), but the config's pipeline loads it as it "
            'lies in the file; load with color_type="color"'
        )
    return (width, height) if orientation in range(5, 9) else (height, width)


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """An image file, opened by Pillow.

    Raises:
        UsageError: it cannot be read, now or while this is open.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that are none of the pixels'
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except UsageError:
        raise
    # A damaged file raises nearly anything (OSError, SyntaxError, ValueError, DecompressionBombError ...).
    except Exception as error:
        what = reason(error) if isinstance(error, OSError) else first_line(error)
        raise UsageError(f"image {path} cannot be read: {what}") from None


def file_reader(
    library: Library, split: Split, files: Sequence[Path], pipeline: Sequence[Mapping[str, Any]]
) -> Callable[[int], dict[str, Any]]:
    """Image by number, through the test pipeline of a config.

    Raises:
        UsageError: the config has no test pipeline, or an image cannot be read.
    """
    if not pipeline:
        raise UsageError("the model's config has no test_dataloader.dataset.pipeline, which says how images are read")
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(library):
        compose = Compose([_with_tuples(step) for step in pipeline])

    def read(index: int) -> dict[str, Any]:
        check_not_sealed(f"{split} images")
        path = files[index]
        # What mmdet's and mmseg's own data sets would say of an image beside its path; none of it is annotation.
        given = {"img_path": str(path), "img_id": index, "seg_fields": [], "reduce_zero_label": False}
        try:
            with DefaultScope.overwrite_default_scope(library):
                found: dict[str, Any] = compose(given)
        except Exception as error:  # OpenCV, Pillow and the pipeline's steps each have errors of their own
            reason = first_line(error)
            raise UsageError(f"image {path} cannot be read by the config's test pipeline: {reason}") from None
        return found

    return read


def _with_tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step of a pipeline with its sizes as mmcv wants them; JSON, YAML and TOML have no tuples."""
    return {key: tuple(v) if key in _SIZES and isinstance(v, list) else v for key, v in step.items()}


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """The image (height, width, 3), turned as its EXIF data say.

    Raises:
        UsageError: it cannot be read.
    """
    from PIL import ImageOps

    with opened(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def scaled_size(config: Config, fallback: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Height and width that the config's test pipeline gives a landscape picture of 4:3, up to a multiple of `divisor`.

    Args:
        config: its `Resize` has a scale of (longest, shortest) side, in whatever order.
        fallback: if it has none.
        divisor: what the model pads to.
    """
    scales = [step["scale"] for step in image_pipeline(config) if step.get("type") == "Resize" and "scale" in step]
    longest, shortest = (max(scales[0]), min(scales[0])) if scales else (max(fallback), min(fallback))
    width = min(longest, round(shortest * 4 / 3))
    return _up(min(shortest, round(width * 3 / 4)), divisor), _up(width, divisor)


def _up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
