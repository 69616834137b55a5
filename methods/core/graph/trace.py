"""The data flow of a network, recorded from one forward pass: which operation feeds which.

Keyed operations (`operations.KINDS`) are nodes. What lies between them (reshapes, windows, scaling by a constant)
passes its origins on. All arithmetic is accounted for (`tracer`): an operation on activations that is in no table is
refused, and the multiply-accumulates are those that torch counts at its lowest level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.api.contracts import VisionModel
from methods.core.graph.flow import CONSTANT, INPUT, TRACED_IMAGES, UNKNOWN, Op, Operand, lies_in
from methods.core.graph.intercept import OUTPUT, OpaqueOperationError, OpKey, UnsupportedNetworkError
from methods.core.graph.tracer import Tracer
from methods.core.numerics.functions import ActivationFunction

__all__ = ["CONSTANT", "INPUT", "TRACED_IMAGES", "UNKNOWN", "Op", "Operand", "Trace", "trace", "trace_net"]

# Kinds that can be a step on the way to a composite.
_STEPS = {"activation", "function", "pool", "reduce"}
# Of networks of models, which stay as they are while they live: by size of images and part.
_traces: WeakKeyDictionary[nn.Module, dict[Any, Trace | UnsupportedNetworkError]] = WeakKeyDictionary()


class Trace:
    """Operations in execution order, with consumers. Sites are sought in the module `part` only, if one is named.

    `runs` are the operations of each key: several where a module with parameters is called several times. `outputs` are
    the operations whose results the network returns, None where that is not known. `steps` are operations inside an
    activation function or a normalisation that is written out, whose results nothing else takes. `takers` are the
    operations that alone take a parameter, and take it as it is, by its name.
    """

    def __init__(
        self,
        ops: list[Op],
        part: str | None = None,
        outputs: frozenset[OpKey] | None = None,
        takers: Mapping[str, OpKey] | None = None,
    ) -> None:
        self.ops = ops
        self.part = part
        self.outputs = outputs
        self.takers = takers or {}
        self.by_key = {op.key: op for op in ops}
        self.runs: dict[OpKey, list[Op]] = {op.key: [] for op in ops}
        self.consumers: dict[OpKey, list[Op]] = {op.key: [] for op in ops}
        for op in ops:
            self.runs[op.key].append(op)
            for source in {k for operand in op.operands for k in operand.ops}:
                self.consumers[source].append(op)
        self.steps: set[OpKey] = set()
        for op in reversed(ops):
            if self._is_step(op):
                self.steps.add(op.key)

    def _is_step(self, op: Op) -> bool:
        consumers = self.consumers[op.key]
        return (
            (op.composite is not None or op.key.kind in _STEPS)
            and bool(consumers)
            and all(c.family == op.family and (c.composite is not None or c.key in self.steps) for c in consumers)
        )

    def is_used(self, op: Op) -> bool:
        """Whether something takes the operation's result: another one, or whoever called the network."""
        return bool(self.consumers[op.key]) or self.outputs is None or op.key in self.outputs

    def owns(self, key: OpKey, *names: str) -> bool:
        """Whether the operation takes these parameters of its module as they are, and nothing else takes them."""
        return all(self.takers.get(f"{key.module}.{name}") == key for name in names)

    def inside(self, key: OpKey) -> bool:
        """Whether the operation runs in the part of the network that is to be quantized."""
        return lies_in(key.module, self.part)

    def function(self, key: OpKey, slot: int) -> ActivationFunction | None:
        """The known activation function that makes an operation's operand `slot`, or with OUTPUT what it gives; None if
        another operation does, or not the same one whenever this runs.
        """
        found = {op.function if slot == OUTPUT else op.given[slot] for op in self.runs[key]}
        return found.pop() if len(found) == 1 else None

    def of_kind(self, kind: str) -> list[Op]:
        """Operations of one kind, in execution order."""
        return [op for op in self.ops if op.key.kind == kind]


@torch.no_grad()
def trace_net(net: nn.Module, input_shape: tuple[int, int, int], part: str | None = None) -> Trace:
    """Record one forward pass of `net` on two blank images (n, *input_shape); sites are sought in the module `part`.

    It is not the first one: networks may keep what that computes (ConViT's distances between patches, LeViT's biases),
    and later passes lack those operations.

    Raises:
        UnsupportedNetworkError: attention is fused (`FusedAttentionError`), something is computed that cannot be
            quantized, or the network changes its input (`OpaqueOperationError`).
    """
    device = next(net.parameters()).device
    images = torch.zeros(TRACED_IMAGES, *input_shape, device=device)
    before = images._version
    net(images)
    if images._version != before:
        raise OpaqueOperationError(
            "the network writes into the images that it is given, so that every pass over the same images would see "
            "others; write such an operation out of place (`x = x - mean` for `x.sub_(mean)`)"
        )
    tracer, outputs = _traced(net, images, part)
    if tracer.unknown:
        # They may be constants of the network, which are the same for all images.
        pixels = torch.linspace(-1.0, 1.0, images.numel(), device=device)
        again, _ = _traced(net, pixels.view_as(images), part)
        if len(again.unknown) != len(tracer.unknown) or not all(map(_same, tracer.unknown, again.unknown)):
            raise OpaqueOperationError(
                "the network computes with a tensor that depends on the images but that no operation was seen to make, "
                "as in a thread or a tensor class of its own; write it in Python, on plain tensors and in one thread"
            )
    return Trace(tracer.ops, part, outputs, tracer.takers.alone())


def _traced(net: nn.Module, images: torch.Tensor, part: str | None) -> tuple[Tracer, frozenset[OpKey] | None]:
    with Tracer(net, images, part) as tracer:
        output = net(images)
    return tracer, tracer.outputs(output)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether their values are equal; on the meta device, where there are none, this is left to the run."""
    return first.is_meta or torch.equal(first, second)


def trace(model: VisionModel) -> Trace:
    """The trace of a model's network, or its refusal, made once: requirements and methods all ask for it.

    It keeps to `model.part`. The network must not be changed afterwards.

    Raises:
        UnsupportedNetworkError: as `trace_net`.
    """
    known = _traces.setdefault(model.net, {})
    key = model.input_shape, model.part
    if key not in known:
        try:
            known[key] = trace_net(model.net, model.input_shape, model.part)
        except UnsupportedNetworkError as refusal:
            known[key] = type(refusal)(*refusal.args)  # without the traceback, which would keep the network
    found = known[key]
    if isinstance(found, UnsupportedNetworkError):
        raise type(found)(*found.args)
    return found
