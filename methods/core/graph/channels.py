"""Where tensors have their channels: the axis that the layers which take them sum over."""

from __future__ import annotations

from collections.abc import Mapping

from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, OpKey
from methods.core.graph.trace import Trace

_FIRST = {"conv", "conv_transpose", "batch_norm"}  # channels behind the images
_LAST = {"linear", "layer_norm", "matmul", "softmax"}


def channel_axes(trace: Trace) -> dict[OpKey, int]:
    """The axis of every operation's result, counted from the end.

    Layers and normalisations tell; other operations have it from an operand with as many axes and as many channels
    there. Where nothing tells it is the last, as in all of a transformer.
    """
    found: dict[OpKey, int] = {}
    for op in trace.ops:
        found[op.key] = _own(op, trace, found)
    return found


def _own(op: Op, trace: Trace, found: Mapping[OpKey, int]) -> int:
    kind, rank = op.key.kind, len(op.shape)
    if kind in _FIRST and rank > 1:
        return 1 - rank
    if kind not in _LAST:
        for source in (trace.by_key[key] for operand in op.operands for key in sorted(operand.ops)):
            axis = found[source.key]
            if len(source.shape) == rank and source.shape[axis] == op.shape[axis]:
                return axis
    return -1


def summed_axis(op: Op, slot: int, channels: Mapping[OpKey, int]) -> int:
    """The axis, counted from the end, that an operand is summed over, or along which a result has its `channels`."""
    if slot == OUTPUT or op.key.kind not in ("conv", "conv_transpose", "linear", "matmul"):
        return channels[op.key]
    if op.key.kind == "matmul":
        return -1 - slot
    return -1 if op.key.kind == "linear" else -3
