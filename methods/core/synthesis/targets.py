"""The output loss of sources that set their target beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.errors import UsageError


def absolute_error(output: Any, targets: Any) -> Tensor:
    """L^O: mean absolute error of the predicted probabilities to the targets' (OuroMamba, ICCV 2025), a scalar.

    `output` are logits (n, classes) or (n, classes, ...), `targets` classes (n) or (n, ...). That the error is of
    probabilities, and a target's a one for its class, is inferred.

    Raises:
        UsageError: the task's output is no such tensor, or its targets are not classes of it.
    """
    fits = (
        isinstance(output, Tensor)
        and isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and output.shape[:1] + output.shape[2:] == targets.shape
    )
    if not fits:
        raise UsageError("the task's random targets are not classes of its output; write output_target=class")
    wanted = functional.one_hot(targets.long(), output.shape[1]).movedim(-1, 1)
    return (torch.softmax(output, 1) - wanted).abs().mean()
