"""Soft labels (SARDFQ, soft-label learning)."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_labels(classes: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random distributions over classes: (n, count).

    softmax(z) with z ~ U(low, high) for the classes that `classes` (n, count), of 0 and 1, raises and z ~ U(0, 1) for
    the others (SARDFQ; the range of the others inferred).
    """
    others = torch.rand(classes.shape, generator=generator)
    raised = low + (high - low) * torch.rand(classes.shape, generator=generator)
    return torch.where(classes.cpu().bool(), raised, others).softmax(-1).to(classes.device)
