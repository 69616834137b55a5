"""Reading weights from files that nobody vouches for: tensors only, and one clear sentence for every defect."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import UsageError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt")
# DeiT's releases; timm's training script. What is inside must have timm's names: Microsoft's Swin files do not.
_WRAPPERS = ("model", "state_dict")
_PARALLEL_PREFIX = "module."  # left behind by DistributedDataParallel


def load_weights(net: nn.Module, path: Path) -> None:
    """Load the weights in `path` into `net`, as float32 and completely.

    Raises:
        UsageError: the file is missing, damaged, holds more than tensors, or does not fit `net`.
    """
    state = _unwrap(_read(path), path)
    expected = net.state_dict()
    _check_fit(state, expected, path)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def identity(facts: Any, net: nn.Module) -> str:
    """Hash (64 hexadecimal digits) of all that makes a model's outputs: its weights and, as JSON, the other `facts`."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"checkpoint {path} must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist or is not a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            # torch warns of suspicious pickles before it refuses them; the error below says it once.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"checkpoint {path} is damaged or holds Python objects beside tensors, which is refused because loading "
            "them could run code; save its state_dict alone"
        ) from None
    # A damaged file raises nearly anything (RuntimeError, EOFError, KeyError, SafetensorError ...).
    except Exception as error:
        reason = first_line(error)
        raise UsageError(f"checkpoint {path} cannot be read, it may be truncated: {reason}") from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The name -> tensor mapping inside the usual wrappers."""
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UsageError(f"checkpoint {path} holds no mapping of names to weights; save a model's state_dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UsageError(
                f"checkpoint {path} holds '{name}', which is not a weight tensor; save the state_dict alone"
            )
    if all(name.startswith(_PARALLEL_PREFIX) for name in content):
        content = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in content.items()}
    return content


def _check_fit(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    for problem, names in (
        ("lacks", sorted(expected.keys() - state.keys())),
        ("has unknown", sorted(state.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"checkpoint {path} {problem} weights {', '.join(names[:3])}{more}; is it another model's?"
            )
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UsageError(
                f"checkpoint {path} does not fit the model: {name} is {tuple(value.shape)} in the file and "
                f"{tuple(expected[name].shape)} in the model"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UsageError(f"checkpoint {path} holds NaN or infinite values in {name}")
