"""Circular band masks and the images that they leave."""

from __future__ import annotations

import torch
from torch import Tensor


def band_mask(height: int, width: int, low: float, high: float) -> Tensor:
    """Frequencies of radius `low` to `high`, both included: (height, width) of 0 and 1, zero frequency first.

    The radius is in shares of the highest frequency along an axis, so that 1 is the circle inside the spectrum and
    its corners reach to the root of 2 (FDD, its code's masks).
    """
    rows, columns = torch.fft.fftfreq(height) * 2, torch.fft.fftfreq(width) * 2
    radius: Tensor = (rows[:, None].square() + columns.square()).sqrt()
    return ((radius >= low) & (radius <= high)).float()


def filtered(images: Tensor, mask: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Normalised images (n, c, h, w) of which only the frequencies of `mask` (h, w) are left.

    `black` and `white` are the normalised pixel bounds: pixels in [0, 1] are filtered and the magnitude of the result
    taken, since a band without zero frequency has negative values, then normalised again (FDD's code).
    """
    pixels = (images - black) / (white - black)
    # The mask is symmetric, so what is left is real up to rounding.
    left: Tensor = torch.fft.ifft2(torch.fft.fft2(pixels) * mask).real.abs()
    return black + left * (white - black)
