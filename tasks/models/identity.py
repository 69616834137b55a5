"""What a model is: a hash of its weights and of whatever else makes its outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import nn


def identity(facts: Any, net: nn.Module) -> str:
    """Hash (64 hexadecimal digits) of all that makes a model's outputs: its weights and, as JSON, the other `facts`."""
    state = net.state_dict().items()
    return _hash(facts, ((name, str(value.dtype), value.contiguous().numpy()) for name, value in state))


def identity_of_file(facts: Any, weights: Path) -> str | None:
    """What `identity` says of the network that has just the `weights` of a file of safetensors, as float32.

    Reads the file without torch and builds no network. None if that cannot be told: the file is damaged, or holds other
    numbers than floats of 16 or 32 bits.
    """
    import numpy as np
    from safetensors.numpy import load_file

    try:
        arrays = load_file(weights)
    except Exception:  # whoever builds the network reads it again, and says what is wrong
        return None
    if not arrays or any(value.dtype not in (np.float16, np.float32) for value in arrays.values()):
        return None
    return _hash(facts, ((name, "torch.float32", value.astype(np.float32)) for name, value in arrays.items()))


def _hash(facts: Any, values: Iterable[tuple[str, str, np.ndarray]]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, kind, value in sorted(values, key=lambda entry: entry[0]):
        digest.update(f"{name} {kind} {tuple(value.shape)}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
