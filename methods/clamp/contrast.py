"""CLAMP-ViT's two contrastive losses, in the form that our reconstruction gives them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def patch_contrast(anchors: Tensor, patches: Tensor, temperature: float, positives: int) -> Tensor:
    """Stage 1 loss L^C1 of one layer, a scalar.

    `anchors` (n, h, w, d) are the quantized model's patches and receive no gradient; `patches` (n, h, w, d) are the
    float model's. Each anchor's candidates are the up to 8 neighbours of its place on the float grid; the `positives`
    most similar ones (at a border the same share, rounded down, at least one) are pulled, all candidates repel:
    l = - mean over positives of log softmax(cosine / temperature). Selection carries no gradient.
    """
    a = functional.normalize(anchors.detach(), dim=-1)
    p = functional.normalize(patches, dim=-1)
    h, w = p.shape[1:3]
    padded = functional.pad(p, (0, 0, 1, 1, 1, 1))
    windows = [padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in _NEIGHBOURS]
    cosine = torch.stack([(a * window).sum(-1) for window in windows], dim=-1)
    inside = functional.pad(torch.ones(1, h, w, 1, dtype=torch.bool, device=p.device), (0, 0, 1, 1, 1, 1))
    valid = torch.cat([inside[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in _NEIGHBOURS], dim=-1)
    logits = (cosine / temperature).masked_fill(~valid, -torch.inf)
    with torch.no_grad():
        wanted = (valid.sum(-1, keepdim=True) * positives // len(_NEIGHBOURS)).clamp(min=1)
        rank = logits.argsort(-1, descending=True).argsort(-1)
        chosen = (rank < wanted).expand_as(logits)
    # Where nothing is chosen the logit may be -inf, and 0 * -inf would be NaN.
    pulled = logits.masked_fill(~chosen, 0.0).sum(-1) / wanted.squeeze(-1)
    return (torch.logsumexp(logits, dim=-1) - pulled).mean()


def output_contrast(quantized: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Stage 2 loss L^C2 of one layer output, a scalar.

    Outputs (n, ..., d) are averaged over tokens; image j's quantized vector shall be most similar to its own float
    vector among the n of the batch: mean_j of - log softmax_m(cos(u_j, v_m) / temperature)_j.
    """
    u, v = (functional.normalize(x.reshape(len(x), -1, x.shape[-1]).mean(1), dim=-1) for x in (quantized, reference))
    labels = torch.arange(len(u), device=u.device)
    return functional.cross_entropy(u @ v.T / temperature, labels)
