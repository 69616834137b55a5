"""Watching a network's arithmetic while it runs, without knowing its classes or the names of its layers.

A `TorchFunctionMode` sees every torch operation of a forward pass. Module hooks tell it which module is running, so an
operation has the same key in every pass: (module path, kind, how-many-th of its kind in that call of the module).
Sites, calibration, quantization, taps and replay are all handlers of this one mechanism, so timm, mmdet and
mmsegmentation models need no code of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.core.layers import LAYERS

# Operation name (as torch dispatches it) -> kind. Anything else only moves values around or is left in float.
KINDS = {
    "linear": "linear",
    "conv2d": "conv",
    "conv_transpose2d": "conv_transpose",
    "matmul": "matmul",
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "bmm": "matmul",
    "layer_norm": "layer_norm",
    "batch_norm": "batch_norm",
    "gelu": "activation",
    "relu": "activation",
    "silu": "activation",
    "softmax": "softmax",
    "add": "add",
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "add_": "add",
    "cat": "cat",
    "mean": "pool",
    "adaptive_avg_pool2d": "pool",
}
_BINARY = {"matmul", "add"}
# Operations that multiply by weights or by each other, but that no kind stands for: a network that uses one would
# silently keep it in float, so it is refused.
OPAQUE = {
    "multi_head_attention_forward",
    "_native_multi_head_attention",
    "einsum",
    "addmm",
    "baddbmm",
    "bilinear",
    "conv1d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose3d",
    "tensordot",
}


class OpKey(NamedTuple):
    """One operation of a network. `module` is the qualified name of the module whose forward runs it."""

    module: str
    kind: str
    index: int

    def __str__(self) -> str:
        """`blocks.0.attn/matmul.1`."""
        return f"{self.module or 'model'}/{self.kind}.{self.index}"


class UnsupportedNetworkError(RuntimeError):
    """The network cannot be quantized here; the message is one sentence that says what it does, where, and what helps.

    The base of all refusals that come from a network's own arithmetic.
    """


class FusedAttentionError(UnsupportedNetworkError):
    """The network calls fused attention, whose two matrix products cannot be seen."""


class OpaqueOperationError(UnsupportedNetworkError):
    """The network multiplies in a way that the substrate cannot quantize."""


class KeyedMode(TorchFunctionMode):
    """Gives every operation of `net` its key while entered; subclasses say what happens at one.

    Hooks are registered on entry and removed on exit, so `net` itself stays unchanged.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = net
        self._handles: list[Any] = []
        self._frames: list[tuple[str, Counter[str]]] = []

    def __enter__(self) -> Self:
        self._frames = [("outside", Counter())]
        for name, module in self._net.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name)))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._frames.append((name, Counter()))

        return hook

    def _leave(self, *_: object) -> None:
        self._frames.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            raise FusedAttentionError(
                "the network uses fused attention; set `fused_attn = False` on its attention modules before quantizing"
            )
        if name in OPAQUE and len(self._frames) > 1:
            raise OpaqueOperationError(
                f"the network calls torch's {name}, which cannot be quantized here; write it with linear and matmul"
            )
        kind = KINDS.get(name)
        if kind is not None and kwargs:
            args, kwargs = _positional(kind, args, kwargs)
        # With only the bottom frame the network is not running: losses on its outputs are none of our business.
        if kind is None or len(self._frames) == 1 or not _is_compute(kind, args):
            return self.other(func, args, kwargs)
        module, counter = self._frames[-1]
        key = OpKey(module, kind, counter[kind])
        counter[kind] += 1
        return self.operation(key, func, args, kwargs)

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the keyed operation."""
        return func(*args, **kwargs)

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that has no key."""
        return func(*args, **kwargs)


def _positional(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with operands and weight as positional arguments, by which operations are told."""
    second = "other" if kind in _BINARY else "weight" if kind in LAYERS else None
    names = ("tensors",) if kind == "cat" else ("input", second)
    moved = list(takewhile(kwargs.__contains__, names[len(args) :]))
    left = {name: value for name, value in kwargs.items() if name not in moved}
    return (*args, *(kwargs[name] for name in moved)), left


def _is_compute(kind: str, args: tuple[Any, ...]) -> bool:
    """Whether the operands are floating-point tensors: `x + 1` and index arithmetic are none of our business.

    Neither is a number that comes as a tensor: mmdet adds `0 * features.sum()` wherever no box needs the features, so
    how often it does so depends on the boxes.
    """
    if kind == "cat":
        return bool(args) and all(map(_is_data, args[0]))
    needed = 2 if kind in _BINARY else 1
    return len(args) >= needed and all(map(_is_data, args[:needed]))


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def operands(kind: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The quantizable operands of a keyed operation: its data inputs, weights and biases excluded."""
    if kind == "cat":
        return tuple(args[0])
    return tuple(args[: 2 if kind in _BINARY else 1])


OUTPUT = -1  # slot of an operation's result; operands have slots 0, 1, ...
Transform = Callable[[Tensor], Tensor]


class Interceptor(KeyedMode):
    """Passes chosen operands and outputs through functions, and can replay recorded outputs instead of computing.

    Args:
        net: the network that will run while this is entered.
        transforms: (operation, slot) -> function of that tensor; it may return another tensor (quantization) or the
            same one (observation).
        replay: operation -> its known output. Such an operation is not computed, and its transforms do not run.
        record: when given, every keyed operation's final output is stored in it; None for one that ran several times.
        instead: operation -> function of the operation's own arguments that is called in its place; transforms run.
    """

    def __init__(
        self,
        net: nn.Module,
        transforms: dict[tuple[OpKey, int], Transform],
        replay: dict[OpKey, Tensor] | None = None,
        record: dict[OpKey, Tensor | None] | None = None,
        instead: dict[OpKey, Callable[..., Tensor]] | None = None,
    ) -> None:
        super().__init__(net)
        self.instead = instead or {}
        self.transforms = transforms
        self.replay = replay or {}
        self.record = record

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run, quantize or replay one operation."""
        known = self.replay.get(key)
        if known is not None:
            return known
        if key.kind == "cat":
            args = ([self._apply(key, i, t) for i, t in enumerate(args[0])], *args[1:])
        else:
            count = 2 if key.kind in _BINARY else 1
            args = (*(self._apply(key, i, args[i]) for i in range(count)), *args[count:])
        result = self._apply(key, OUTPUT, self.instead.get(key, func)(*args, **kwargs))
        if self.record is not None:
            # A module that runs several times (a head on every level of a pyramid) has one key for all its runs.
            # A copy, since the network may add to the result in place.
            self.record[key] = None if key in self.record else result.clone()
        return result

    def _apply(self, key: OpKey, slot: int, tensor: Tensor) -> Tensor:
        transform = self.transforms.get((key, slot))
        return tensor if transform is None else transform(tensor)


@torch.no_grad()
def tap(net: nn.Module, images: Tensor, points: list[tuple[OpKey, int]]) -> tuple[Any, dict[tuple[OpKey, int], Tensor]]:
    """Run `net` once without gradients; return its output and the tensors at `points`."""
    found: dict[tuple[OpKey, int], Tensor] = {}
    with Interceptor(net, tap_transforms(points, found)):
        output = net(images)
    return output, found


def tap_transforms(
    points: list[tuple[OpKey, int]], found: dict[tuple[OpKey, int], Tensor]
) -> dict[tuple[OpKey, int], Transform]:
    """Transforms that store the tensors at `points` in `found` and change nothing."""

    def keep(point: tuple[OpKey, int]) -> Transform:
        def transform(tensor: Tensor) -> Tensor:
            found[point] = tensor
            return tensor

        return transform

    return {point: keep(point) for point in points}
