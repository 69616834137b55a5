"""The residual stream of a network: what writes it and what reads it, found from the data flow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from methods.core.graph.flow import Op, Operand
from methods.core.graph.intercept import OpKey
from methods.core.graph.plain import plain_layers
from methods.core.graph.structure import Block
from methods.core.graph.trace import Trace

_PASSING = {"add", "cat", "pool"}  # of tensors of the stream they make one: sums, class tokens, means over tokens


class NotAStreamError(RuntimeError):
    """The stream cannot be rotated; the message says why."""


@dataclass
class Stream:
    """Layers and parameters (class token, positions) whose sum it is; LayerNorms that read it, with their layers."""

    writers: dict[OpKey, None] = field(default_factory=dict)
    parameters: dict[str, None] = field(default_factory=dict)
    readers: dict[OpKey, tuple[OpKey, ...]] = field(default_factory=dict)
    width: int = 0


def find_stream(net: nn.Module, graph: Trace, blocks: list[Block]) -> Stream:
    """The stream that runs through all blocks.

    Raises:
        NotAStreamError: something reads or writes it that a rotation cannot be folded into, or it changes its width.
    """
    found = _Search(net, graph).from_(blocks[0].branch[0])
    normed = [op.key for op in graph.of_kind("layer_norm") if graph.inside(op.key)]
    missed = [key for key in normed if key not in found.readers]
    if missed:
        raise NotAStreamError(f"{missed[0]} is no part of it")
    return found


class _Search:
    def __init__(self, net: nn.Module, graph: Trace) -> None:
        self._net = net
        self._graph = graph
        self._plain = plain_layers(net, graph, nn.Linear)
        self._uses = Counter(name for op in graph.ops for operand in op.operands for name in operand.parameters)
        self._stream = Stream()
        self._own_uses: Counter[str] = Counter()  # of parameters, within the stream

    def from_(self, start: OpKey) -> Stream:
        waiting, seen = [start], {start}
        while waiting:
            key = waiting.pop()
            near = self._look(self._graph.by_key[key])
            waiting += near - seen
            seen |= near
        elsewhere = [name for name in self._stream.parameters if self._own_uses[name] != self._uses[name]]
        if elsewhere:
            raise NotAStreamError(f"parameter '{elsewhere[0]}' is used elsewhere, too")
        return self._stream

    def _look(self, op: Op) -> set[OpKey]:
        """Take one operation that makes the stream; those beside it that do so, too."""
        graph = self._graph
        if not graph.inside(op.key) or len(graph.runs[op.key]) > 1:
            raise NotAStreamError(f"{op.key} runs several times, or outside of what is quantized")
        if graph.outputs is None or op.key in graph.outputs:
            raise NotAStreamError(f"the network gives back what {op.key} makes")
        near: set[OpKey] = set()
        if op.key.kind in _PASSING:
            for operand in op.operands:
                near |= self._summand(op, operand)
        elif op.key.kind in ("linear", "conv"):
            self._write(op)
        else:
            raise NotAStreamError(f"{op.key} makes it, which a rotation does not pass")
        for consumer in graph.consumers[op.key]:
            if consumer.key.kind in _PASSING:
                near.add(consumer.key)
            elif consumer.key.kind == "layer_norm":
                self._read(consumer)
            else:
                raise NotAStreamError(f"{consumer.key} takes it without a LayerNorm")
        return near

    def _summand(self, op: Op, operand: Operand) -> set[OpKey]:
        if operand.altered or operand.others or (operand.ops and operand.parameters):
            raise NotAStreamError(f"{op.key} takes something that is scaled, resized or constant")
        for name in operand.parameters:
            self._stream.parameters[name] = None
            self._own_uses[name] += 1
            self._check_width(op, self._net.get_parameter(name).shape[-1])
        return set(operand.ops)

    def _write(self, op: Op) -> None:
        layer = self._net.get_submodule(op.key.module)
        plain = op.key in self._plain or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and op.weight == f"{op.key.module}.weight"
        )
        if not plain:
            raise NotAStreamError(f"{op.key} writes it, which is no plain layer with a weight of its own")
        self._check_width(op, layer.get_parameter("weight").shape[0])
        self._stream.writers[op.key] = None

    def _read(self, op: Op) -> None:
        norm, consumers = self._net.get_submodule(op.key.module), self._graph.consumers[op.key]
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1 or norm.weight is None:
            raise NotAStreamError(f"{op.key} is no LayerNorm over channels with a scale of each")
        source = op.operands[0]
        if source.altered or source.others or source.parameters or len(self._graph.runs[op.key]) > 1:
            raise NotAStreamError(f"{op.key} takes more than the stream")
        self._check_width(op, norm.normalized_shape[0])
        given_back = self._graph.outputs is None or op.key in self._graph.outputs
        for consumer in consumers:
            operand = consumer.operands[0]
            straight = operand.ops == {op.key} and not (operand.altered or operand.parameters or operand.others)
            given_back = given_back or not straight or consumer.key not in self._plain
        if given_back or not consumers:
            raise NotAStreamError(f"what {op.key} makes goes to something else than plain linear layers")
        self._stream.readers[op.key] = tuple(consumer.key for consumer in consumers)

    def _check_width(self, op: Op, width: int) -> None:
        self._stream.width = self._stream.width or width
        if width != self._stream.width:
            raise NotAStreamError(f"{op.key} has {width} channels of it, others {self._stream.width}")
