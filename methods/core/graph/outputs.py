"""Outputs of networks, whatever containers they come in: logits, feature maps, a detector's heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def tensor_pairs(first: Any, second: Any) -> list[tuple[Tensor, Tensor]]:
    """The floating-point tensors of two outputs of one network, side by side.

    Raises:
        ValueError: their structures differ.
    """
    return list(zip(tensors(first), tensors(second), strict=True))


def split(output: Any, k: int) -> list[Any]:
    """The k outputs of a batch-first output whose batch is k equal parts."""
    leaves, spec = pytree.tree_flatten(output)
    parts = [leaf.chunk(k) if isinstance(leaf, Tensor) else [leaf] * k for leaf in leaves]
    return [pytree.tree_unflatten([part[i] for part in parts], spec) for i in range(k)]


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, whatever containers it comes in."""
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
