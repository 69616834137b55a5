"""Synthesized images on disk: what made them is in their key, and a file is used only if it is what its name says."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from harness.api.errors import first_line
from harness.io.files import open_regular, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 2**35  # no set of images is larger
_IMAGES = "images"
_SNAPSHOT = "snapshot-"  # name of a snapshot, before its step
_DIMENSIONS = 4  # n, channels, height, width
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LeftBehind(BaseModel):
    """What making images left beside them: seconds of stages, counters, diagnostics and memory in MiB."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seconds: dict[str, Amount]
    counters: dict[str, int]
    diagnostics: dict[str, dict[str, Any]]
    added_mib: Amount


@dataclass(frozen=True)
class Cached:
    """Images (n, channels, height, width), what making them left behind, and the first ones after some steps."""

    images: Tensor
    left: LeftBehind
    snapshots: Mapping[int, Tensor] = field(default_factory=dict)


class Unusable(ValueError):
    """A file that is not the images that its name says; the message says why."""


class ImageCache:
    """A folder with one file for each set of images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        """Where the images of `key` are."""
        return self._folder / f"{key}.safetensors"

    def read(self, key: str) -> Cached | None:
        """The images of `key`; None if there are none, or with a warning if what is there is anything else."""
        path = self.path(key)
        try:
            with open_regular(path, MOST_BYTES) as file:
                content = file.read()
            return _parsed(content, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            text = f"cached images {path} are not usable ({first_line(error)}); they are made anew"
            warnings.warn(text, stacklevel=2)
            return None

    def write(self, key: str, made: Cached) -> None:
        """Keep images for `key`; a warning if the folder cannot. Those with NaN or infinite values are not kept."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not bool(made.images.isfinite().all()):
            return  # whoever uses them warns
        tensors = {_IMAGES: made.images} | {f"{_SNAPSHOT}{step}": kept for step, kept in made.snapshots.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        left = made.left.model_dump_json()
        metadata = {"key": key, "left_behind": left, "content": _content(tensors, left)}
        try:
            write_atomically(self.path(key), lambda temporary: save_file(tensors, temporary, metadata=metadata))
        except (OSError, SafetensorError) as error:  # the images are there, so that the cell need not fail
            text = f"images could not be kept in the cache {self._folder} ({first_line(error)}); they are made again"
            warnings.warn(text, stacklevel=2)


def _parsed(content: bytes, key: str) -> Cached:
    """The content of a file as it was written for `key`.

    Raises:
        ValueError: it is not that.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, RecursionError, KeyError) as error:
        raise Unusable(f"no safetensors file: {first_line(error)}") from None
    if metadata.get("key") != key:
        raise Unusable("they were made for something else, or by an older version")
    left = metadata.get("left_behind", "")
    if metadata.get("content") != _content(tensors, left):
        raise Unusable("damaged")
    images = tensors.pop(_IMAGES, torch.empty(0))
    if images.dim() != _DIMENSIONS or not images.is_floating_point() or not bool(images.isfinite().all()):
        raise Unusable("no batch of finite images")
    snapshots = {int(name.removeprefix(_SNAPSHOT)): tensor for name, tensor in tensors.items()}
    return Cached(images, LeftBehind.model_validate_json(left), snapshots)


def _content(tensors: Mapping[str, Tensor], left: str) -> str:
    """SHA-256 of all tensors with names, types and shapes, and of `left`."""
    import torch

    whole = hashlib.sha256(left.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
