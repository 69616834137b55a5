"""Filters on finished synthetic images."""

from __future__ import annotations

import torch
from torch import Tensor


def low_pass(images: Tensor, cut: float) -> Tensor:
    """Images (n, c, h, w) through a Gaussian low-pass filter: frequencies are weighted by exp(-D^2 / (2 cut^2)).

    D is the distance from zero frequency in cycles across the image, per axis, and `cut` SynQ's D_0 in the same unit
    (SynQ, ICLR 2025, equation 4). The weight of zero frequency is 1 and the kernel a Gaussian, so that values stay
    between the images' least and greatest but for rounding; they are kept there. Images are periodic to it.
    """
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    weight = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * cut**2))
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * weight, s=(height, width))
    return filtered.clamp(images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True))
