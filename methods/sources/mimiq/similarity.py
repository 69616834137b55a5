"""Similarity of attention heads: structural similarity (SSIM) of their maps."""

from __future__ import annotations

import torch
from torch import Tensor


def head_dissimilarity(maps: Tensor) -> Tensor:
    """Sum over pairs of heads of 1 - SSIM^2, averaged over images and queries: a scalar.

    `maps` is (rows, heads, queries, keys): for each query one map a head. With means m, variances v and the
    covariance c of two heads' maps over the keys, SSIM = (2 m_i m_j + C1) (2 c_ij + C2) / ((m_i^2 + m_j^2 + C1)
    (v_i + v_j + C2)), C1 = (0.01 R)^2, C2 = (0.03 R)^2 (Wang et al. 2004), R the range of all maps, without gradient.
    Squared, so that maps of opposite sign count as alike (MimiQ, inter-head attention similarity; window inferred).

    One product of (heads, keys) matrices instead of a pass for every pair.
    """
    x = maps.transpose(1, 2)
    heads, keys = x.shape[2:]
    least, greatest = torch.aminmax(maps.detach())
    extent = (greatest - least).clamp(min=torch.finfo(maps.dtype).eps)
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    covariance = centred @ centred.transpose(-1, -2) / keys
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    luminance = (2 * mean * mean.mT + c1) / (mean.square() + mean.square().mT + c1)
    structure = (2 * covariance + c2) / (variance + variance.mT + c2)
    first, second = torch.triu_indices(heads, heads, offset=1, device=x.device)
    ssim = (luminance * structure)[..., first, second]
    return (1.0 - ssim.square()).sum(-1).mean()
