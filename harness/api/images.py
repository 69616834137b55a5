"""Batches of images: their numbers in the set that they are of, and what images must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from harness.api.contracts import VisionModel
from harness.api.errors import BadResult

if TYPE_CHECKING:
    from torch import Tensor

# Standard deviations beyond black and white that pixels may lie: Gaussian noise stays within 6, bytes are far outside.
_BEYOND = 8.0
T = TypeVar("T")
_numbers: ContextVar[Tensor | None] = ContextVar("numbers of the images in a batch", default=None)


@contextmanager
def image_numbers(numbers: Tensor) -> Iterator[None]:
    """While open, the i-th image of every batch that a network gets is number `numbers[i]` of its set."""
    token = _numbers.set(numbers)
    try:
        yield
    finally:
        _numbers.reset(token)


def in_batches(function: Callable[..., T], size: int, *tensors: Tensor) -> list[T]:
    """Results of `function` on parts of batch-first `tensors` of a whole set, `size` images at once, which have their
    numbers in the set meanwhile (`image_numbers`).
    """
    import torch

    numbers = torch.arange(len(tensors[0]), device=tensors[0].device)
    found = []
    for own, *parts in zip(*(torch.split(x, size) for x in (numbers, *tensors)), strict=True):
        with image_numbers(own):
            found.append(function(*parts))
    return found


def numbers_of(images: Tensor) -> Tensor:
    """The numbers of a batch of images in their set, (n,): what `image_numbers` says, else 0 to n - 1.

    Raises:
        ValueError: it speaks of a batch of another size.
    """
    import torch

    numbers = _numbers.get()
    if numbers is None:
        return torch.arange(len(images), device=images.device)
    if len(numbers) != len(images):
        raise ValueError(f"{len(numbers)} image numbers for a batch of {len(images)}")
    return numbers


def check_images(images: Tensor, model: VisionModel, source: str) -> None:
    """Check calibration images made by `source`.

    Raises:
        BadResult: they are no batch of images for `model`, or not finite, or not normalised.
    """
    import torch

    channels = model.input_shape[0]
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or images.shape[1] != channels or not len(images):
        shape = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise BadResult(f"{source} made {shape} in place of images (n, {channels}, height, width)")
    least, most = (float(value) for value in torch.aminmax(images.detach()))  # NaN if there is one
    if not (math.isfinite(least) and math.isfinite(most)):
        raise BadResult(f"{source} made images with NaN or infinite pixels")
    low, high = (bound.min().item() if i == 0 else bound.max().item() for i, bound in enumerate(model.pixel_bounds()))
    if least < low - _BEYOND or most > high + _BEYOND:
        raise BadResult(
            f"{source} made images with values from {least:.4g} to {most:.4g}, where normalised black and white are "
            f"{low:.4g} and {high:.4g}; images are to be normalised by the model's mean and std"
        )
