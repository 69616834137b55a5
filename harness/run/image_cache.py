"""Synthesized images on disk: what made them is in their key, and a file is used only if it is what its name says."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from harness.api.errors import first_line
from harness.io.claims import Claim, Pace, sweep
from harness.io.files import open_regular, prepare_folder, reason, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 2**35  # no set of images is larger
_CLAIM = ".claim"
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


def prepare_cache(folder: Path, option: str) -> None:
    """Create the folder of a cache, check that it can be written, and remove what killed runs left in it.

    Raises:
        UsageError: as `harness.io.files.prepare_folder`.
    """
    prepare_folder(folder, option)
    sweep(folder, _CLAIM)


class ImageCache:
    """A folder with one file for each set of images."""

    def __init__(self, folder: Path, pace: Pace | None = None) -> None:
        self._folder = folder
        self._pace = pace or Pace()

    def path(self, key: str) -> Path:
        """Where the images of `key` are."""
        return self._folder / f"{key}.safetensors"

    @contextmanager
    def turn(self, key: str, wait: Callable[[Claim], bool]) -> Iterator[Cached | None]:
        """The images of `key`, or None: then they are for the block to make and to `write`, and other processes that
        want them wait for its end. Who has waited for images that were then not kept does not wait again.

        Args:
            key: What the images are known by.
            wait: Called to let the claim of another process `wait`.
        """
        claim = Claim(self._folder / f"{key}{_CLAIM}", self._pace)
        found = self._found(key)
        try:
            if not isinstance(found, Cached):
                found = self._awaited(key, claim, wait)
            yield self._usable(key, found)
        finally:
            claim.give_up()

    def _awaited(self, key: str, claim: Claim, wait: Callable[[Claim], bool]) -> Cached | str | None:
        """What there is when it is for nobody else to make images."""
        given_up = False
        try:
            while not claim.take() and not given_up:
                given_up = wait(claim)
                if isinstance(found := self._found(key), Cached):
                    return found
        except OSError as error:
            text = (
                f"cells cannot tell each other in {self._folder} who makes images ({reason(error)}); some may be made"
            )
            warnings.warn(f"{text} several times", stacklevel=2)
        return self._found(key)

    def read(self, key: str) -> Cached | None:
        """The images of `key`; None if there are none, or with a warning if what is there is anything else."""
        return self._usable(key, self._found(key))

    def _found(self, key: str) -> Cached | str | None:
        """The images of `key`, what is wrong with them, or None if there are none."""
        try:
            with open_regular(self.path(key), MOST_BYTES) as file:
                content = file.read()
            return _parsed(content, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return first_line(error)

    def _usable(self, key: str, found: Cached | str | None) -> Cached | None:
        if not isinstance(found, str):
            return found
        warnings.warn(f"cached images {self.path(key)} are not usable ({found}); they are made anew", stacklevel=2)
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
