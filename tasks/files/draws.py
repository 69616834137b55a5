"""Which training images a method is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed

if TYPE_CHECKING:
    import torch


def drawn(count: int, available: int, generator: torch.Generator) -> list[int]:
    """Numbers of `count` of the `available` calibration images, without replacement.

    Raises:
        UsageError: there are not so many.
        DataFreeViolation: data is sealed.
    """
    import torch

    check_not_sealed("calibration images")
    if not 1 <= count <= available:
        raise UsageError(f"{count} calibration images were asked for, but there are 1 to {available} to draw")
    numbers: list[int] = torch.randperm(available, generator=generator)[:count].tolist()
    return numbers
