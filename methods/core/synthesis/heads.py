"""What MimiQ's image source and its descendants share: how alike heads attend, and how images are disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from methods.core.synthesis.descent import REFERENCE_SIZE, frobenius_norms, synthesize, tv_scale
from methods.core.synthesis.options import HeadOptions

BETAS = (0.9, 0.999)
_REFERENCE_BATCH = math.sqrt(16 / 32)  # total variation of MimiQ's batch of 16 images to that of PSAQ-ViT's of 32
_FLAT = 1e-8  # added to a map's range


def head_dissimilarity(maps: Tensor) -> Tensor:
    """1 - SSIM^2, averaged over images, queries and pairs of heads, those of a head with itself included: a scalar.

    `maps` is (rows, heads, queries, keys): for each query one map a head, which is scaled to 0 to 1 by itself. With
    means m, variances v and the covariance c of two heads' maps over the keys, SSIM = (2 m_i m_j + C1) (2 c_ij + C2) /
    ((m_i^2 + m_j^2 + C1) (v_i + v_j + C2)), C1 = 0.01^2, C2 = 0.03^2 (Wang et al. 2004). Squared, so that maps of
    opposite sign count as alike (MimiQ, inter-head attention similarity).

    One product of (heads, keys) matrices instead of a pass for every pair.
    """
    x = maps.transpose(1, 2)
    x = x - x.amin(-1, keepdim=True)
    x = x / (x.amax(-1, keepdim=True) + _FLAT)
    c1, c2 = 0.01**2, 0.03**2
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    covariance = centred @ centred.mT / x.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    luminance = (2 * mean * mean.mT + c1) / (mean.square() + mean.square().mT + c1)
    structure = (2 * covariance + c2) / (variance + variance.mT + c2)
    return (1.0 - (luminance * structure).square()).mean()


def head_variation(images: Tensor) -> Tensor:
    """Total variation of images (n, c, h, w), a scalar, as if of MimiQ's batch of 16 RGB images of 224x224 pixels.

    Frobenius norms of the differences to the right and down, and of those along the diagonals divided by root two.
    """
    right, down, falling, rising = frobenius_norms(images)
    total: Tensor = right + down + (falling + rising) / math.sqrt(2)
    return total * (_REFERENCE_BATCH / tv_scale(images))


class Disturbance:
    """MimiQ's augmentation: a call gives what the network sees of images (n, c, h, w) in one step.

    They are rolled on both axes by offsets of their own, up to `jitter` pixels in the first half of all steps and twice
    as many in the second. Every image and channel gets an offset from a normal distribution, whose standard deviation
    falls from `noise` to 0 over the steps, and is then shifted and its contrast changed at random by `colour`.
    """

    def __init__(self, options: HeadOptions, generator: torch.Generator) -> None:
        self._options = options
        self._generator = generator

    def __call__(self, images: Tensor, done: int, steps: int) -> Tensor:
        """The images as they are seen in the step after `done` of `steps`."""
        o, generator = self._options, self._generator
        reach = round(o.jitter * (1 if 2 * done < steps else 2) * images.shape[-1] / REFERENCE_SIZE)
        down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        shape = (*images.shape[:2], 1, 1)
        offset = o.noise * (1 - (done + 1) / steps) * torch.randn(shape, generator=generator)
        shift, contrast = o.colour * (2 * torch.rand(2, *shape, generator=generator) - 1)
        rolled = torch.roll(images, (down, right), (2, 3))
        seen: Tensor = (rolled + (offset - shift).to(images.device)) * torch.exp(-contrast).to(images.device)
        return seen


def disturbed_descent(
    model: VisionModel, loss: Callable[[Tensor], Tensor], options: HeadOptions, ctx: RunContext
) -> Tensor:
    """Images from noise by MimiQ's settings, under `loss` of what the network sees and the variation of the pixels."""
    generator = ctx.generator("augmentation")
    return synthesize(
        model,
        loss,
        options,
        lr=options.lr,
        floor=options.lr_floor,
        decay=options.weight_decay,
        betas=BETAS,
        augment=Disturbance(options, generator),
        prior=lambda images: options.tv_weight * head_variation(images),
        generator=generator,
        ctx=ctx,
    )
