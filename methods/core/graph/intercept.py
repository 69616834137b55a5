"""Watching a network's arithmetic while it runs, without knowing its classes or the names of its layers.

A `TorchFunctionMode` sees every torch operation of a forward pass. Module hooks tell it which module is running, so an
operation has the same key in every pass: (module path, kind, how-many-th of its kind in that call of the module).
Sites, calibration, quantization, taps and replay are all handlers of this one mechanism, so that no class of
timm's, mmdet's or mmsegmentation's needs code in the methods. (Tasks have some, which makes their operations visible.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.core.graph.operations import KINDS, MULTIPLYING, arity, is_compute, name_of, positional, writes_in_place


class OpKey(NamedTuple):
    """One operation of a network. `module` is the qualified name of the module whose forward runs it."""

    module: str
    kind: str
    number: int

    def __str__(self) -> str:
        """`blocks.0.attn/matmul.1`."""
        return f"{self.module or 'model'}/{self.kind}.{self.number}"


class UnsupportedNetworkError(RuntimeError):
    """The network cannot be quantized here; the message is one sentence that says what it does, where, and what helps.

    The base of all refusals that come from a network's own arithmetic.
    """


class FusedAttentionError(UnsupportedNetworkError):
    """The network calls fused attention, whose two matrix products cannot be seen."""


class OpaqueOperationError(UnsupportedNetworkError):
    """The network multiplies in a way that the substrate cannot quantize."""


class _Frame:
    """One call of a module: how many operations of each kind it has run."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.counts: Counter[str] = Counter()
        self.functions: dict[str, _Frame] = {}


def _within(names: Sequence[str], module: str) -> str | None:
    """The first of the names that lies in `module`, if any does; its own children come first."""
    inside = [name for name in names if not module or name.startswith(f"{module}.")]
    return min(inside, key=lambda name: name.count("."), default=None)


class KeyedMode(TorchFunctionMode):
    """Gives every operation of `net` its key while entered; subclasses say what happens at one.

    A module without parameters is a function: its operations are numbered through all its calls by one caller, as
    those of `functional.relu` are, so that a ReLU used twice in a block has two keys, and an instance that several
    blocks share has a name, and keys, in each of them. A module with parameters has the same keys in every call: a head
    that runs on each level of a pyramid, or a layer that is applied again, has its weights in common, and its ranges
    too. What is called from outside of where it is kept counts as its caller's own arithmetic.

    Hooks are registered on entry and removed on exit, so `net` itself stays unchanged.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = net
        self._handles: list[Any] = []
        self._frames: list[_Frame] = []

    def __enter__(self) -> Self:
        self._frames = [_Frame("outside")]
        names: dict[nn.Module, list[str]] = {}
        for name, module in self._net.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        for module, known in names.items():
            self._handles.append(module.register_forward_pre_hook(self._enter(known)))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, names: Sequence[str]) -> Callable[..., None]:
        def hook(module: nn.Module, *_: object) -> None:
            frame = None
            if self._running and next(module.parameters(), None) is None:
                caller = self._frames[-1]
                own = _within(names, caller.module)
                frame = caller if own is None else caller.functions.setdefault(own, _Frame(own))
            self._frames.append(frame or _Frame(names[0]))

        return hook

    def _leave(self, *_: object) -> None:
        self._frames.pop()

    @property
    def _running(self) -> bool:
        """Whether the network runs; losses on its outputs are none of our business."""
        return len(self._frames) > 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name == "scaled_dot_product_attention":
            raise FusedAttentionError(
                "the network uses fused attention; set `fused_attn = False` on its attention modules before quantizing"
            )
        kind = KINDS.get(name)
        if kind is not None and kwargs:
            args, kwargs = positional(kind, args, kwargs)
        if kind is None or not self._running or not is_compute(kind, args, kwargs):
            return self.other(func, args, kwargs)
        frame = self._frames[-1]
        key = OpKey(frame.module, kind, frame.counts[kind])
        frame.counts[kind] += 1
        return self.operation(key, func, args, kwargs)

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the keyed operation."""
        return func(*args, **kwargs)

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that has no key."""
        return func(*args, **kwargs)


OUTPUT = -1  # slot of an operation's result; operands have slots 0, 1, ...
Transform = Callable[[Tensor], Tensor]


class Interceptor(KeyedMode):
    """Passes chosen operands and outputs through functions, and can replay recorded outputs instead of computing.

    An operation in place (`x.add_(y)`) gives the same numbers as `x + y`: it is computed beside its first operand, into
    which the result is then copied.

    Args:
        net: the network that will run while this is entered.
        transforms: (operation, slot) -> function of that tensor; it may return another tensor (quantization) or the
            same one (observation).
        replay: operation -> its known output. Such an operation is not computed, and its transforms do not run. The
            network may write into these tensors, so they serve one pass.
        record: when given, every keyed operation's final output is stored in it; None for one that ran several times.
        instead: operation -> function of the operation's own arguments that is called in its place; transforms run.
        traced: all layers and matrix products that may run, None for any.

    Raises:
        OpaqueOperationError: while the network runs, it multiplies where it did not when it was traced.
    """

    def __init__(
        self,
        net: nn.Module,
        transforms: Mapping[tuple[OpKey, int], Transform],
        *,
        replay: dict[OpKey, Tensor] | None = None,
        record: dict[OpKey, Tensor | None] | None = None,
        instead: dict[OpKey, Callable[..., Tensor]] | None = None,
        traced: Set[OpKey] | None = None,
    ) -> None:
        super().__init__(net)
        self._traced = traced
        self.instead = instead or {}
        self.transforms = dict(transforms)
        self.replay = replay or {}
        self.record = record

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run, quantize or replay one operation."""
        if self._traced is not None and key.kind in MULTIPLYING and key not in self._traced:
            raise OpaqueOperationError(
                f"the network runs {key} on these images but not when it was traced, and it would stay in float; "
                "which layers it runs must not depend on the images"
            )
        target = args[0] if writes_in_place(key.kind, func, args, kwargs) else None
        known = self.replay.get(key)
        if known is not None:
            return known if target is None else target.copy_(known)
        if target is not None and not self._watches(key):
            target = None  # the operation may write as it does by itself
        if key.kind == "cat":
            args = ([self._apply(key, i, t) for i, t in enumerate(args[0])], *args[1:])
        else:
            count = arity(key.kind)
            # What a transform keeps of a tensor that is written to must not change with it, nor may what it returns.
            first = self._apply(key, 0, args[0] if target is None else args[0].clone())
            others = [self._apply(key, slot, args[slot]) for slot in range(1, count)]
            args = (first if target is None else first.clone(), *others, *args[count:])
        compute: Callable[..., Any] = self.instead.get(key, func)
        result = self._apply(key, OUTPUT, compute(*args, **kwargs))
        if self.record is not None:
            # A module that runs several times (a head on every level of a pyramid) has one key for all its runs.
            # A copy, since the network may add to the result in place.
            self.record[key] = None if key in self.record else result.clone()
        return result if target is None else target.copy_(result)

    def _watches(self, key: OpKey) -> bool:
        return key in self.instead or any((key, slot) in self.transforms for slot in (0, 1, OUTPUT))

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
