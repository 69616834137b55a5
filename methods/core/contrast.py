"""CLAMP-ViT's two contrastive losses, in the forms that our reconstruction gives them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

PatchForm = Literal["infonce", "log-of-sums"]
Gradient = Literal["float", "quantized", "both"]
Pooling = Literal["tokens", "channels", "none"]
LocalForm = Literal["infonce", "relational", "cosine", "mse"]
Anchors = Literal["quantized", "float", "both"]
Negatives = Literal["other", "both"]


def patch_contrast(
    anchors: Tensor,
    patches: Tensor,
    temperature: float,
    positives: int,
    *,
    neighbourhood: int = 3,
    form: PatchForm = "infonce",
    colocated: bool = False,
    gradient: Gradient = "float",
) -> Tensor:
    """Stage 1 loss L^C1 of one layer, a scalar (our reconstruction; CLAMP-ViT, figure 2 and 5d).

    `anchors` (n, h, w, d) are the quantized model's patches, `patches` (n, h, w, d) the float model's. Each anchor's
    candidates are the up to neighbourhood^2 - 1 neighbours of its place on the float grid; the `positives` most
    similar ones (at a border the same share, rounded down, at least one) are pulled, all candidates repel. With
    s = cosine / temperature:

    - `infonce`: l = - mean over positives of log(exp(s_p) / sum over all exp(s));
    - `log-of-sums`: l = - log(sum over positives exp(s_p) / sum over all exp(s)).

    `colocated` adds the float patch at the anchor's own place to the positives. `gradient` says which branch gets one:
    the float patches (the figure's), the quantized anchors (through rounding straight-through), or both. Selection
    carries none.
    """
    a = functional.normalize(anchors.detach() if gradient == "float" else anchors, dim=-1)
    p = functional.normalize(patches.detach() if gradient == "quantized" else patches, dim=-1)
    h, w = p.shape[1:3]
    reach = neighbourhood // 2
    near = range(-reach, reach + 1)
    shifts = [(dy, dx) for dy in near for dx in near if (dy, dx) != (0, 0)]
    padding = (reach, reach, reach, reach)
    padded = functional.pad(p, (0, 0, *padding))
    windows = [padded[:, reach + dy : reach + dy + h, reach + dx : reach + dx + w] for dy, dx in shifts]
    cosine = torch.stack([(a * window).sum(-1) for window in windows], dim=-1)
    inside = functional.pad(torch.ones(1, h, w, dtype=torch.bool, device=p.device), padding)
    valid = torch.stack(
        [inside[:, reach + dy : reach + dy + h, reach + dx : reach + dx + w] for dy, dx in shifts], dim=-1
    )
    logits = (cosine / temperature).masked_fill(~valid, -torch.inf)
    with torch.no_grad():
        wanted = (valid.sum(-1, keepdim=True) * positives // len(shifts)).clamp(min=1)
        rank = logits.argsort(-1, descending=True).argsort(-1)
        chosen = (rank < wanted).expand_as(logits)
    if colocated:
        own = ((a * p).sum(-1, keepdim=True)) / temperature
        logits = torch.cat([logits, own], dim=-1)
        chosen = torch.cat([chosen, torch.ones_like(own, dtype=torch.bool)], dim=-1)
    if form == "log-of-sums":
        pulled = torch.logsumexp(logits.masked_fill(~chosen, -torch.inf), dim=-1)
    else:
        # Where nothing is chosen the logit may be -inf, and 0 * -inf would be NaN.
        pulled = logits.masked_fill(~chosen, 0.0).sum(-1) / chosen.sum(-1)
    return (torch.logsumexp(logits, dim=-1) - pulled).mean()


def output_contrast(
    quantized: Tensor,
    reference: Tensor,
    temperature: float,
    *,
    pooling: Pooling = "tokens",
    form: LocalForm = "infonce",
    anchors: Anchors = "quantized",
    negatives: Negatives = "other",
    centred: bool = False,
) -> Tensor:
    """Stage 2 loss L^C2 of one layer output for k candidates at once: (k,) (our reconstruction; figure 2).

    `reference` (n, ..., d) is the float model's output, `quantized` (k * n, ..., d) that of k candidates, candidate by
    candidate. Both are averaged over tokens (or channels, or not at all). `centred` takes the float vectors' mean over
    images from both, so that what all images have in common does not count. `infonce`: image j's quantized vector shall
    be most similar to its own float vector among the n of the batch, mean_j of - log softmax_m(cos(u_j, v_m) /
    temperature)_j. InfoNCE is not least at equality: where images are alike it rewards moving away from the other
    images' vectors. The other forms are: `relational`, the KL divergence of that softmax from the float vectors' own,
    so that each image shall keep its similarities to all; `cosine`, mean_j of 1 - cos(u_j, v_j); `mse`, squared error
    relative to the float vectors' squares.

    Of `infonce` alone: `anchors` are the model's whose vectors are compared with the other's, or both in turn
    (symmetric, the mean of the two). `negatives` are the other images' vectors of the anchor's opposite model (n - 1)
    or of both models (2n - 2, as in NT-Xent).
    """
    n = len(reference)
    u, v = _pool(quantized, pooling), _pool(reference, pooling)
    if centred:
        mean = v.mean(0)
        u, v = u - mean, v - mean
    u = u.reshape(-1, n, u.shape[-1])
    if form == "mse":
        return (u - v).square().mean((1, 2)) / v.square().mean().clamp(min=1e-12)
    u, v = functional.normalize(u, dim=-1), functional.normalize(v, dim=-1)
    if form == "cosine":
        return (1.0 - (u * v).sum(-1)).mean(1)
    if form == "relational":
        scores = u @ v.T / temperature
        wanted = (v @ v.T / temperature).log_softmax(-1)
        return (wanted.exp() * (wanted - scores.log_softmax(-1))).sum(-1).mean(1)
    losses = []
    if anchors != "float":
        losses.append(_infonce(u, v, temperature, negatives))
    if anchors != "quantized":
        losses.append(_infonce(v, u, temperature, negatives))
    return torch.stack(losses).mean(0)


def _infonce(anchors: Tensor, others: Tensor, temperature: float, negatives: Negatives) -> Tensor:
    """(k,) from unit vectors, of which one of the two is (k, n, d) and the other (n, d)."""
    scores = anchors @ others.mT / temperature
    every = scores
    if negatives == "both":
        own = anchors @ anchors.mT / temperature
        alike = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
        every = torch.cat([scores, own.masked_fill(alike, -torch.inf).expand_as(scores)], dim=-1)
    return (every.logsumexp(-1) - scores.diagonal(dim1=1, dim2=2)).mean(1)


def _pool(x: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "none" or x.dim() == 2:  # a vector per image (logits) has no tokens, and its mean says nothing
        return x.flatten(1)
    rows = x.reshape(len(x), -1, x.shape[-1])
    return rows.mean(1 if pooling == "tokens" else 2)
