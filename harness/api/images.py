"""Calibration images: their numbers in the set that they are of, and what they must be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.api.contracts import VisionModel
from harness.api.errors import BadResult

if TYPE_CHECKING:
    from torch import Tensor, nn

# Standard deviations beyond black and white that pixels may lie: Gaussian noise stays within 6, bytes are far outside.
_BEYOND = 8.0
# Images that a result is looked at with: more than a network is traced with, so that what is done once per image shows.
PROBES = 3


@runtime_checkable
class Numbered(Protocol):
    """A network whose output goes with an image's number in its set too, as a detector's at given boxes.

    Its `forward(images, numbers=None)` takes the numbers (n,) of images (n, c, h, w); without them they are 0 to n - 1.
    """

    takes_numbers: bool


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of a set, all of them or some, with the numbers that they have in it.

    A detector's RoI heads look at boxes that go with an image's number. Whoever runs only some of the images, or runs
    them in another order or several times, therefore runs an `ImageSet`: each image is then seen at its own boxes.

    Args:
        images: (n, c, h, w), normalised.
        numbers: (n,), int64, on the device of the images.

    Raises:
        ValueError: there are not as many numbers as images.
    """

    images: Tensor
    numbers: Tensor

    def __post_init__(self) -> None:
        if len(self.numbers) != len(self.images):
            raise ValueError(f"{len(self.numbers)} image numbers for {len(self.images)} images")

    @classmethod
    def whole(cls, images: Tensor) -> ImageSet:
        """All images (n, c, h, w) of a set: number 0 to n - 1."""
        import torch

        return cls(images, torch.arange(len(images), device=images.device))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        """Some of the images, in the order of `index`."""
        return ImageSet(self.images[index], self.numbers[index])

    def batches(self, size: int) -> list[ImageSet]:
        """All images in their order, `size` at once; the last batch may be smaller."""
        import torch

        parts = zip(torch.split(self.images, size), torch.split(self.numbers, size), strict=True)
        return [ImageSet(*part) for part in parts]

    def repeated(self, count: int) -> ImageSet:
        """`count` copies of all images, one set after the other; a copy in memory also if it is one."""
        return ImageSet(self.images.repeat(count, 1, 1, 1), self.numbers.repeat(count))

    def through(self, net: nn.Module) -> Any:
        """What `net` gives for the images, which it is told the numbers of if it is `Numbered`."""
        return net(self.images, numbers=self.numbers) if isinstance(net, Numbered) else net(self.images)


def probes(model: VisionModel, count: int = PROBES) -> Tensor:
    """`count` images of uniform noise between black and white, always the same, normalised."""
    import torch

    low, high = model.pixel_bounds()
    share = torch.rand(count, *model.input_shape, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * share.to(model.device)


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
