"""Image files of the dense tasks' on-disk data sets: found, identified, and read as the models want them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.contracts import check_not_sealed
from harness.errors import UsageError, first_line
from tasks.dense_suite import Split
from tasks.image_folder import SUFFIXES
from tasks.openmmlab.models import Library

if TYPE_CHECKING:
    from mmengine.config import Config


def need(paths: Mapping[Path, str], suite: str, root: Path) -> None:
    """Check that everything is where it is expected.

    Args:
        paths: what must be there -> what it is.
        suite: whose data they are.
        root: the data root that the user gave.

    Raises:
        UsageError: something is missing; the message says what else is, too.
    """
    if not root.is_dir():
        raise UsageError(f"data root {root} is not a folder; suite '{suite}' expects {_list(paths, root)} in it")
    missing = {path: what for path, what in paths.items() if not path.exists()}
    if missing:
        raise UsageError(f"data root {root} lacks {_list(missing, root)}; suite '{suite}' needs that to run")


def _list(paths: Mapping[Path, str], root: Path) -> str:
    return ", ".join(f"{path.relative_to(root).as_posix()} ({what})" for path, what in paths.items())


def images_in(folder: Path) -> list[Path]:
    """Image files in `folder`, by name.

    Raises:
        UsageError: there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def files_identity(root: Path, files: Iterable[Path], more: Iterable[bytes] = ()) -> str:
    """Hash of the relative paths and sizes of `files`, and of `more`: 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    for part in more:
        whole.update(part)
    return whole.hexdigest()[:16]


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
        compose = Compose([dict(step) for step in pipeline])

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


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """The image (height, width, 3).

    Raises:
        UsageError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UsageError(f"image {path} cannot be read: {error}") from None


def scaled_size(config: Config, fallback: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Height and width that the config's test pipeline gives a landscape picture of 4:3, up to a multiple of `divisor`.

    Args:
        config: its `Resize` has a scale of (longest, shortest) side, in whatever order.
        fallback: if it has none.
        divisor: what the model pads to.
    """
    from tasks.openmmlab.references import image_pipeline

    scales = [step["scale"] for step in image_pipeline(config) if step.get("type") == "Resize" and "scale" in step]
    longest, shortest = (max(scales[0]), min(scales[0])) if scales else (max(fallback), min(fallback))
    width = min(longest, round(shortest * 4 / 3))
    return _up(min(shortest, round(width * 3 / 4)), divisor), _up(width, divisor)


def _up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
