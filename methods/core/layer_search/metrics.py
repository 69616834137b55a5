"""How far candidate outputs are from the float one.

Outputs come as the operation has them; `Layout` says which of their values make a group (attention heads, projections
of one fused layer, output channels) and which a feature vector, of which the metrics are means.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From (k, *output) to a view (k, ..., groups, features); what lies between is tokens and images.
Layout = Callable[[Tensor], Tensor]
_SMALLEST = 1e-20


def hessian(outputs: Tensor, reference: Tensor, gradient: Tensor | None, layout: Layout) -> Tensor:
    """(k, groups): sums of (gradient * (output - reference))^2, the Hessian-guided metric (PTQ4ViT, section 3.3).

    Args:
        outputs: (k, *shape); used up.
        reference: (*shape), the float output.
        gradient: (*shape), of the network's loss in it; None weighs all values alike.
        layout: which values make a group.
    """
    error = outputs.sub_(reference)
    if gradient is not None:
        error.mul_(gradient)
    grouped = layout(error.square_())
    return grouped.sum(dim=(*range(1, grouped.dim() - 2), grouped.dim() - 1))


def cosine(outputs: Tensor, reference: Tensor, gradient: Tensor | None, layout: Layout) -> Tensor:
    """(k, groups): minus the sum over tokens of the cosine similarity of feature vectors. Arguments as in `hessian`."""
    ours, theirs = layout(outputs), layout(reference[None])
    dot = (ours * theirs).sum(-1)
    norms = ours.square().sum(-1) * theirs.square().sum(-1)
    similarity = dot / norms.clamp(min=_SMALLEST).sqrt()
    return -similarity.sum(dim=tuple(range(1, similarity.dim() - 1)))


METRICS = {"hessian": hessian, "cosine": cosine}


def by_features(groups: int) -> Layout:
    """Equal pieces of the last axis; the features of a token are a piece."""
    return lambda x: x.unflatten(-1, (groups, -1))


def by_channels(x: Tensor) -> Tensor:
    """Every channel of (k, n, ..., channels) is a group, and its values in an image are the features."""
    return x.flatten(2, -2).transpose(-1, -2)


def by_maps(groups: int) -> Layout:
    """Every channel of (k, n, channels, h, w) is a group, and its values in an image are the features.

    With fewer `groups`, channels c, c + groups, c + 2 groups, ... share one, as in grouped transposed convolutions.
    """
    return lambda x: x.flatten(3).unflatten(2, (-1, groups))


def by_heads(x: Tensor) -> Tensor:
    """Every head of (k, n, heads, rows, columns) is a group; features are the columns."""
    return x.transpose(2, 3)


def by_rows(x: Tensor) -> Tensor:
    """One group; features are the last axis."""
    return x.unsqueeze(-2)


def by_images(x: Tensor) -> Tensor:
    """One group; features are all values of an image."""
    return x.flatten(2).unsqueeze(2)


def choose(scores: Tensor, groups: int) -> Tensor:
    """(groups,) first candidate of least score; with one group the scores (k, any) are summed.

    Raises:
        ValueError: scores of several groups cannot be told apart by the tensor's.
    """
    if groups == 1:
        scores = scores.sum(1, keepdim=True)
    if scores.shape[1] != groups:
        raise ValueError(f"{scores.shape[1]} groups of outputs do not fit {groups} of the quantizer")
    # argmin does not promise which of equal candidates it takes.
    return (scores == scores.amin(0)).to(torch.uint8).argmax(0)
