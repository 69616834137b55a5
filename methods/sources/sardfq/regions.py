"""Regions of images that are optimised as images of their own (SARDFQ, multi-semantic reinforcement)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """Rectangles of images in pixels, each of the tensors (regions,): whose image, and where in it."""

    owner: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def resized(self, images: Tensor) -> Tensor:
        """The regions of `images` (n, c, h, w), each resized to (h, w): (regions, c, h, w).

        Bilinear, as two products with interpolation matrices, which differentiate exactly and deterministically; the
        gradient flows back into the regions.
        """
        device, dtype = images.device, images.dtype
        down = _interpolation(self.top, self.height, images.shape[2]).to(device, dtype)
        right = _interpolation(self.left, self.width, images.shape[3]).to(device, dtype)
        chosen = images[self.owner.to(device)]
        return down[:, None] @ chosen @ right[:, None].mT


def _interpolation(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices (regions, size, size) that stretch pixels start ... start + length - 1 of an axis to all of it."""
    where = (torch.arange(size) + 0.5) * (length[:, None] / size) - 0.5
    where = start[:, None] + where.clamp(min=0).minimum(length[:, None] - 1.0)
    return (1.0 - (where[..., None] - torch.arange(size)).abs()).clamp(min=0)


def random_regions(
    images: int, size: tuple[int, int], most: int, smallest: float, generator: torch.Generator
) -> Regions:
    """1 to `most` regions for each of `images` images of `size` (height, width), none of which overlap.

    An image is cut into as many cells per side as needed, and each chosen cell holds one region of `smallest` to the
    whole of the cell's sides, placed at random (SARDFQ; how regions are drawn is inferred).
    """
    cells = math.isqrt(most - 1) + 1
    rows: list[tuple[int, ...]] = []
    for image in range(images):
        count = int(torch.randint(1, most + 1, (), generator=generator))
        for cell in torch.randperm(cells**2, generator=generator)[:count].tolist():
            share = smallest + (1.0 - smallest) * float(torch.rand((), generator=generator))
            spans = []
            for index, side in zip(divmod(cell, cells), size, strict=True):
                first, last = index * side // cells, (index + 1) * side // cells
                length = max(1, round(share * (last - first)))
                offset = int(torch.randint(0, last - first - length + 1, (), generator=generator))
                spans.append((first + offset, length))
            (top, height), (left, width) = spans
            rows.append((image, top, left, height, width))
    return Regions(*torch.tensor(rows).unbind(1))
