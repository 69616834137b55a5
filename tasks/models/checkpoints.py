"""Reading weights from files that nobody vouches for: tensors only, and one clear sentence for every defect."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.api.errors import UsageError, first_line
from harness.io.files import reason
from tasks.files.content import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
Which = Literal["", "ema", "raw"]  # of the weights in a file: their moving average if there is one, it, or not it
# Under which names files keep weights beside other things: timm's and DeiT's moving averages of weights come first, as
# in timm's loader. What is inside must have timm's names: Microsoft's Swin files do not.
_WRAPPERS: Mapping[Which, tuple[str, ...]] = {
    "ema": ("state_dict_ema", "model_ema"),
    "raw": ("model", "state_dict"),
}
# Left in names by torch.compile, FSDP and activation checkpointing, also in their middle.
_WRAPPING_MODULES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHARD = re.compile(r"-\d+-of-\d+\.")
_SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Taken:
    """Which weights of a file were taken: the `entry` that held them, empty if they are all of the file, and other
    entries that hold weights of the same model.
    """

    entry: str = ""
    others: tuple[str, ...] = ()


def load_weights(net: nn.Module, path: Path, which: Which = "") -> Taken:
    """Load the weights in `path` into `net`, as float32 and completely.

    A prefix that all names share is dropped if the rest then fits, such as `module.`, `model.` or `backbone.`.

    Args:
        net: what they must fit.
        path: a file of safetensors or torch.
        which: the moving average of the weights or those that it was taken of, if a file may have both.

    Raises:
        UsageError: the file is missing, damaged, holds more than tensors, or does not fit `net`.
    """
    content, taken = _unwrap(_read(path), which, path)
    expected = net.state_dict()
    state = _renamed(_tensors(content, path), expected)
    _check_fit(state, expected, path, _classifiers(net))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return taken


def _read(path: Path) -> Any:
    if path.name.endswith(".index.json"):
        raise UsageError(f"checkpoint {path} is the index of several files; save all weights in one file")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"checkpoint {path} must end in {', '.join(SUFFIXES)}")
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise UsageError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"checkpoint {path} cannot be read: {reason(error)}") from None
    with file:
        try:
            if path.suffix.lower() == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                # torch warns of suspicious pickles before it refuses them; the error below says it once. timm's
                # training script keeps its arguments, which are a Namespace, with the weights.
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UsageError(
                f"checkpoint {path} is damaged or holds Python objects beside tensors, which is refused because "
                "loading them could run code; save its state_dict alone"
            ) from None
        # A damaged file raises nearly anything (RuntimeError, EOFError, KeyError, SafetensorError ...).
        except Exception as error:
            raise UsageError(f"checkpoint {path} cannot be read, it may be truncated: {first_line(error)}") from None


def _unwrap(content: Any, which: Which, path: Path) -> tuple[Any, Taken]:
    """What the usual wrappers hold, and which of them was taken."""
    taken = Taken()
    while isinstance(content, dict):
        held = [(kind, key) for kind, keys in _WRAPPERS.items() for key in keys if isinstance(content.get(key), dict)]
        chosen = next((key for kind, key in held if not which or kind == which), None)
        if chosen is None:
            break
        content, taken = content[chosen], Taken(chosen, tuple(key for kind, key in held if key != chosen))
        which = ""  # found
    if which == "ema":
        raise UsageError(f"checkpoint {path} has no moving average of weights ({', '.join(_WRAPPERS['ema'])})")
    return content, taken


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """`content` as a mapping of names to ordinary tensors."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"checkpoint {path} holds no mapping of names to weights; save a model's state_dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UsageError(
                f"checkpoint {path} holds '{name}', which is not a weight tensor; save the state_dict alone"
            )
        kind = _oddity(value)
        if kind:
            raise UsageError(f"checkpoint {path} holds {kind} in {name}; save ordinary float weights")
    return content


def _oddity(value: Tensor) -> str:
    """What keeps a tensor from being ordinary numbers in memory; empty: nothing."""
    kinds = {
        "a nested tensor": value.is_nested,
        "a quantized tensor": value.is_quantized or (value.is_floating_point() and value.dtype not in _FLOATS),
        "a sparse tensor": value.layout != torch.strided,
        "a tensor without values (on the meta device)": value.is_meta,
        "complex numbers": value.is_complex(),
        f"a tensor of the class {type(value).__name__}": type(value) not in (torch.Tensor, torch.nn.Parameter),
    }
    return next((kind for kind, found in kinds.items() if found), "")


def _renamed(state: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """`state` without the wrapping modules and the prefix that all its names share, if it fits then; else as it is."""
    names = {name: [part for part in name.split(".") if part not in _WRAPPING_MODULES] for name in state}
    depth = min(map(len, names.values()))
    shared = next((d for d in range(depth) if len({parts[d] for parts in names.values()}) > 1), depth)
    for dropped in range(shared + 1):
        renamed = {".".join(parts[dropped:]): state[name] for name, parts in names.items()}
        if len(renamed) == len(state) and renamed.keys() == set(expected):
            return renamed
    return state


def _classifiers(net: nn.Module) -> Sequence[str]:
    """Names of the layers that tell classes apart, where timm says them."""
    names = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else names


def _check_fit(
    state: dict[str, Tensor], expected: dict[str, Tensor], path: Path, classifiers: Sequence[str] = ()
) -> None:
    differences = [
        f"{problem} weights {_first(names)}"
        for problem, names in (
            ("lacks", sorted(expected.keys() - state.keys())),
            ("has unknown", sorted(state.keys() - expected.keys())),
        )
        if names
    ]
    if differences:
        hint = "it is one of several files; save all weights in one" if _SHARD.search(path.name) else ""
        hint = hint or "is it another model's, or does another library name them so?"
        raise UsageError(f"checkpoint {path} {' and '.join(differences)}; {hint}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            if name.rpartition(".")[0] in classifiers and value.shape[1:] == expected[name].shape[1:]:
                raise UsageError(
                    f"checkpoint {path} tells {value.shape[0]} classes apart and the data has "
                    f"{expected[name].shape[0]}; give data with a folder for each of its classes"
                )
            raise UsageError(
                f"checkpoint {path} does not fit the model: {name} is {tuple(value.shape)} in the file and "
                f"{tuple(expected[name].shape)} in the model"
            )
        if value.is_floating_point() != expected[name].is_floating_point():
            raise UsageError(
                f"checkpoint {path} does not fit the model: {name} is {value.dtype} in the file and "
                f"{expected[name].dtype} in the model"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UsageError(f"checkpoint {path} holds NaN or infinite values in {name}")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
