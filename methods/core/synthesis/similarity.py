"""Patch similarity and the entropy of its density, with memory bounded by one similarity matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FEWEST_TOKENS = 2  # of which one is dropped: the patch that is left has no other


def patch_similarity(context: Tensor, images: int) -> Tensor:
    """Cosine similarities between patches, from attention's output before the projection.

    `context` is (rows, heads, tokens, d) with rows = images x windows, image-major. Heads are averaged and token 0 is
    dropped: the class token, or in Swin the first patch of each window (as the reference does). All pairs of one
    window, the diagonal included, pool into the sample of its image. Returns (images, pairs).

    A batched Gram product of unit vectors: (rows, t, t) values, where the reference's broadcast cosine similarity
    holds (rows, t, t, d). PSAQ-ViT, equations 3 and 4.
    """
    features = functional.normalize(context.mean(dim=1)[:, 1:], dim=-1)
    return (features @ features.transpose(1, 2)).reshape(images, -1)


class _GaussianDensity(torch.autograd.Function):
    """p(x_g) = mean_j N(x_g; s_j, h^2), computed and differentiated one grid point at a time.

    Autograd would keep several (images, pairs, grid) tensors; here only the similarities are kept and the kernel is
    computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, grid: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(samples, grid)
        ctx.bandwidth = bandwidth
        norm = 1.0 / (bandwidth * math.sqrt(2.0 * math.pi))
        return torch.stack([_kernel(samples, x, bandwidth).mean(1) * norm for x in grid], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        samples, grid = ctx.saved_tensors
        factor = 1.0 / (ctx.bandwidth**3 * math.sqrt(2.0 * math.pi) * samples.shape[1])
        total = torch.zeros_like(samples)
        for column, x in zip(grad.unbind(1), grid, strict=True):
            total += _kernel(samples, x, ctx.bandwidth).mul_(x - samples).mul_((column * factor)[:, None])
        return total, None, None


def _kernel(samples: Tensor, x: Tensor, bandwidth: float) -> Tensor:
    return (samples - x).square_().mul_(-0.5 / bandwidth**2).exp_()


def density(samples: Tensor, grid: Tensor, bandwidth: float) -> Tensor:
    """Gaussian kernel density of `samples` (n, pairs) at the points `grid` (g,): (n, g)."""
    return _GaussianDensity.apply(samples, grid, bandwidth)  # type: ignore[no-any-return]


def entropy(samples: Tensor, bandwidth: float, points: int) -> Tensor:
    """Mean over images of the differential entropy of the similarity density, a scalar.

    The grid spans the least to the greatest similarity of the whole batch; -p log p with p + 1e-4 is integrated by
    the trapezoid rule (PSAQ-ViT, equations 5 to 7 and code).
    """
    low, high = torch.aminmax(samples.detach())
    steps = torch.linspace(0.0, 1.0, points, device=samples.device, dtype=samples.dtype)
    grid = low + (high - low) * steps
    p = density(samples, grid, bandwidth) + 1e-4
    return torch.trapezoid(-p * p.log(), grid, dim=1).mean()


def diversity(contexts: Sequence[Tensor], images: int, bandwidth: float, points: int) -> Tensor:
    """-L_PSE: sum over blocks of the entropies of `contexts`, each as `patch_similarity` takes it, a scalar.

    Blocks that see a single patch (a last Swin stage of small images, attention pooling) have no pairs: left out.

    Raises:
        ValueError: no block has a pair of patches.
    """
    terms = [
        entropy(patch_similarity(context, images), bandwidth, points)
        for context in contexts
        if context.shape[2] > FEWEST_TOKENS
    ]
    if not terms:
        raise ValueError("no attention of the network sees two patches, so they have no similarity; use larger images")
    return torch.stack(terms).sum()
