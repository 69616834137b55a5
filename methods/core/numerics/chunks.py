"""How many candidates are evaluated at once."""

from __future__ import annotations

import torch

# Values of the largest tensor of a batch of candidates. On a CPU larger ones are slower again, since fresh memory has
# to be mapped for every operation (measured in CLAMP-ViT's search: 16 MiB against 128 MiB, 1.5 times).
_LARGEST = {"cpu": 2**22, "cuda": 2**27}


def largest_batch(device: torch.device) -> int:
    """Values that the largest tensor of a batch of candidates may have."""
    return _LARGEST.get(device.type, _LARGEST["cpu"])


def at_once(device: torch.device, values: int) -> int:
    """Candidates of a batch, at least one, if the largest tensor of each has `values` values."""
    return max(1, largest_batch(device) // values)
