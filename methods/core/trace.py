"""The data flow of a network, recorded from one forward pass: which operation feeds which.

Only keyed operations (`methods.core.intercept.KINDS`) are nodes. Everything between them (reshapes, windows, scaling by
a constant) passes its origins on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.core.intercept import KeyedMode, OpKey, operands
from methods.core.layers import LAYERS

INPUT, CONSTANT = "input", "constant"
TRACED_IMAGES = 2


@dataclass(frozen=True)
class Operand:
    """Where an operand comes from: operations, parameter names, the network's input, constants (buffers)."""

    ops: frozenset[OpKey]
    parameters: frozenset[str]
    others: frozenset[str]

    @property
    def is_parameter(self) -> bool:
        """Made of parameters alone (position embedding, relative position bias)."""
        return bool(self.parameters) and not self.ops and INPUT not in self.others

    @property
    def is_constant(self) -> bool:
        """Made of buffers alone (attention mask)."""
        return not self.ops and not self.parameters and INPUT not in self.others


@dataclass(frozen=True)
class Op:
    """One keyed operation.

    `weight` is the parameter name of a linear layer's or convolution's weight, `macs` the multiply-accumulates of a
    linear layer, convolution or matrix product for one image (0 for other kinds). `batched`: it depends on the images,
    so that the first axis of its output is the batch, or that times the windows or boxes of an image.
    """

    key: OpKey
    operands: tuple[Operand, ...]
    weight: str | None
    shape: tuple[int, ...]
    macs: int = 0
    batched: bool = True


class Trace:
    """Operations in execution order, with consumers. Sites are sought in the module `part` only, if one is named."""

    def __init__(self, ops: list[Op], part: str | None = None) -> None:
        self.ops = ops
        self.part = part
        self.by_key = {op.key: op for op in ops}
        self.consumers: dict[OpKey, list[Op]] = {op.key: [] for op in ops}
        for op in ops:
            for source in {k for operand in op.operands for k in operand.ops}:
                self.consumers[source].append(op)

    def inside(self, key: OpKey) -> bool:
        """Whether the operation runs in the part of the network that is to be quantized."""
        return self.part is None or f"{key.module}.".startswith(f"{self.part}.")

    def of_kind(self, kind: str) -> list[Op]:
        """Operations of one kind, in execution order."""
        return [op for op in self.ops if op.key.kind == kind]


class _Tracer(KeyedMode):
    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__(net)
        self.ops: list[Op] = []
        self._batched: set[OpKey] = set()
        # Tensors are kept alive beside their origins, so that an id cannot be given to a second tensor.
        self._seen: dict[int, tuple[Tensor, Operand]] = {}
        self._weights = {id(p): name for name, p in net.named_parameters()}
        empty: frozenset[Any] = frozenset()
        for name, parameter in net.named_parameters():
            self._seen[id(parameter)] = (parameter, Operand(empty, frozenset([name]), empty))
        for buffer in net.buffers():
            self._seen[id(buffer)] = (buffer, Operand(empty, empty, frozenset([CONSTANT])))
        self._seen[id(images)] = (images, Operand(empty, empty, frozenset([INPUT])))

    def _origin(self, tensor: Tensor) -> Operand:
        known = self._seen.get(id(tensor))
        return known[1] if known else Operand(frozenset(), frozenset(), frozenset([CONSTANT]))

    def _mark(self, result: Any, origin: Operand) -> None:
        for tensor in _tensors(result):
            self._seen[id(tensor)] = (tensor, origin)

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sources = tuple(self._origin(t) for t in operands(key.kind, args))
        weight = self._weights.get(id(args[1])) if key.kind in LAYERS else None
        result = func(*args, **kwargs)
        batched = any(INPUT in source.others or source.ops & self._batched for source in sources)
        if batched:
            self._batched.add(key)
        macs = _macs(key.kind, args, result) // (TRACED_IMAGES if batched else 1)
        self.ops.append(Op(key, sources, weight, tuple(result.shape), macs, batched))
        self._mark(result, Operand(frozenset([key]), frozenset(), frozenset()))
        return result

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        # A tensor made like another one (`new_zeros`) counts as coming from it: a compiled operator may fill it unseen.
        origins = [self._origin(t) for t in _tensors([*args, *kwargs.values()])]
        if origins:
            merged = Operand(
                frozenset().union(*(o.ops for o in origins)),
                frozenset().union(*(o.parameters for o in origins)),
                frozenset().union(*(o.others for o in origins)),
            )
            # Assignment to a part of a tensor returns nothing: boxes' features are put together so, level by level.
            self._mark(args[0] if getattr(func, "__name__", "") == "__setitem__" else result, merged)
        return result


def _macs(kind: str, args: tuple[Any, ...], result: Tensor) -> int:
    """Multiply-accumulates: the length of the sum behind every value of the result."""
    if kind == "conv_transpose":  # the other way round: the number of values that every value of the input goes into
        return int(args[0].numel() * args[1][0].numel())
    if kind == "matmul":
        length = args[0].shape[-1]
    elif kind in ("linear", "conv"):
        length = args[1][0].numel()
    else:
        return 0
    return int(result.numel() * length)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


@torch.no_grad()
def trace(net: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Record one forward pass of `net` on two blank images (n, *input_shape).

    Raises:
        FusedAttentionError: attention is fused.
        OpaqueOperationError: an operation cannot be quantized.
    """
    device = next(net.parameters()).device
    images = torch.zeros(TRACED_IMAGES, *input_shape, device=device)
    with _Tracer(net, images) as tracer:
        net(images)
    return Trace(tracer.ops, getattr(net, "quantized_part", None))
