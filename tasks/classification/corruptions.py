"""Well-known corruptions of evaluation images, by ImageNet-C's and CIFAR-10-C's severities.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019, and
their code's constants. Four of its corruptions are here, one of each kind but weather. They are applied to images as
the network gets them, resized and cropped, before they are normalised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api.errors import UsageError, closest

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.contracts import VisionModel

SMALL = 64  # pixels of a side up to which the severities are CIFAR-10-C's
# Severities 1 to 5 of ImageNet-C, then of CIFAR-10-C. Blur: standard deviation in pixels; noise: standard deviation of
# pixels in 0 to 1; contrast: share of it that is left; JPEG: quality.
SEVERITIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "gaussian-blur": ((1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "gaussian-noise": ((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "contrast": ((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": ((25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
_TRUNCATED = 4.0  # standard deviations of a blur's kernel on either side
_CODED = (1, 3)  # channels that JPEG knows


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, 1 to 5."""

    name: str
    severity: int

    @classmethod
    def parse(cls, text: str) -> Corruption:
        """Read `NAME:SEVERITY`.

        Raises:
            UsageError: another form, an unknown name or severity.
        """
        name, _, severity = text.strip().partition(":")
        if name not in SEVERITIES:
            raise UsageError(
                f"there is no corruption '{name}'; {closest(name, SEVERITIES)}known: {', '.join(SEVERITIES)}"
            )
        if not re.fullmatch("[1-5]", severity):
            raise UsageError(f"corruption '{text}' has no severity 1 to 5; write for example {name}:3")
        return cls(name, int(severity))

    def __str__(self) -> str:
        """`gaussian-blur:3`."""
        return f"{self.name}:{self.severity}"

    def __call__(self, images: Tensor, model: VisionModel, first: int) -> Tensor:
        """Normalised images (n, c, h, w) on the CPU, corrupted; image i is the `first` + i-th of its data set.

        Noise is drawn for each image by its number, so that it is the same for every model, method and batch size.

        Raises:
            UsageError: JPEG of images that are neither grey nor RGB.
        """
        import torch

        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))
        pixels = (images * std + mean).clamp(0, 1)
        amount = SEVERITIES[self.name][min(images.shape[-2:]) <= SMALL][self.severity - 1]
        changed: Tensor = _APPLY[self.name](pixels, amount, first)
        return (changed.clamp(0, 1) - mean) / std


def _blurred(pixels: Tensor, sigma: float, _first: int) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    side = 2 * int(_TRUNCATED * sigma + 0.5) + 1
    blurred: Tensor = gaussian_blur(pixels, [side, side], [sigma, sigma])
    return blurred


def _noisy(pixels: Tensor, deviation: float, first: int) -> Tensor:
    import torch

    noise = [torch.randn(p.shape, generator=torch.Generator().manual_seed(first + i)) for i, p in enumerate(pixels)]
    return pixels + deviation * torch.stack(noise)


def _flat(pixels: Tensor, share: float, _first: int) -> Tensor:
    mean = pixels.mean((2, 3), keepdim=True)
    return mean + share * (pixels - mean)


def _compressed(pixels: Tensor, quality: float, _first: int) -> Tensor:
    import torch
    from torchvision.transforms.v2.functional import jpeg

    if pixels.shape[1] not in _CODED:
        raise UsageError(f"corruption jpeg is of grey or RGB images, and these have {pixels.shape[1]} channels")
    coded = (255 * pixels).round().to(torch.uint8)
    return torch.stack([jpeg(image, int(quality)) for image in coded]).float() / 255


_APPLY = {"gaussian-blur": _blurred, "gaussian-noise": _noisy, "contrast": _flat, "jpeg": _compressed}
