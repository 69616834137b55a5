"""MaskAQ's two terms: entropy of what patches attend to, and a masked difference of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = 1e-8  # added to a variance


def attention_entropies(maps: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Entropy of the similarities between patches' attention, one for each of `maps`: (n,).

    `maps` are (n, heads, patches, patches). Of the mean over heads, up to `rows` random patches' rows are compared by
    their cosines; with the biased variance s^2 of all cosines, H = (log(2 pi e) + log(s^2 + 1e-8)) / 2, that of a
    normal distribution (MaskAQ, L_fb = -mean H, and code).
    """
    attention = maps.mean(1)
    patches = attention.shape[1]
    if patches > rows:
        drawn = torch.rand(attention.shape[:2], generator=generator).argsort(1)[:, :rows].to(maps.device)
        attention = attention.gather(1, drawn[..., None].expand(-1, -1, attention.shape[2]))
    unit = functional.normalize(attention, dim=-1, eps=1e-6)
    variance = (unit @ unit.mT).flatten(1).var(1, correction=0)
    return 0.5 * (math.log(2 * math.pi * math.e) + (variance + _LEAST).log())


def attention_mask(attention: Tensor, share: float, drop: float, generator: torch.Generator) -> Tensor:
    """Which patches count, for each row of `attention` (rows, patches), which the float model gives them: of 0 and 1.

    The `share` of them with most attention, at least one, without a random share `drop`, of which at least one is left
    (MaskAQ, code).
    """
    chosen = max(1, int(attention.shape[1] * share))
    left = max(1, round(chosen * (1.0 - drop)))
    most = attention.detach().topk(chosen, dim=1).indices
    if left < chosen:
        kept = torch.rand(most.shape, generator=generator).argsort(1)[:, :left].to(most.device)
        most = most.gather(1, kept)
    return torch.zeros_like(attention).scatter_(1, most, 1.0)


def masked_difference(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """L_align of a layer: mean absolute difference of attention (rows, patches) where `mask` is 1; MaskAQ. A scalar."""
    return ((first - second).abs() * mask).sum() / mask.sum()
