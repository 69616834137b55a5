"""How quantized results arrive at LayerNorm and softmax: which channel where, and scaled by what.

Between the operations that the trace knows, a network only moves values, scales them, and adds constants. So a few
passes in which the results are replaced by zeros, ones and channel numbers show the way that any network's values take.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from methods.core.graph.flow import Operand
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, Transform
from methods.core.graph.trace import Trace

_TOLERANCE = 1e-3  # of a channel number that went through the network's scalings


@dataclass(frozen=True)
class Arrival:
    """The input of a LayerNorm or softmax, which is the quantized result of `source` times `factor`, plus constants.

    `axis` is that of the source's channels, and `channels` (length,) says for every value that LayerNorm normalises
    together from which channel it comes; None for a softmax, and where places are mixed with channels.
    """

    source: OpKey
    factor: float
    axis: int | None = None
    channels: Tensor | None = None


def source_of(operand: Operand, graph: Trace, stored: Set[OpKey]) -> OpKey | None:
    """The one quantized result that `operand` is, apart from added constants (a mask); None if it is something else."""
    if len(operand.ops) != 1:
        return None
    (key,) = operand.ops
    if key in stored:
        return key
    data = [each for each in graph.by_key[key].operands if not each.is_constant]
    return source_of(data[0], graph, stored) if key.kind == "add" and len(data) == 1 else None


def arrivals(model: VisionModel, graph: Trace, stored: Set[OpKey]) -> dict[OpKey, Arrival]:
    """Arrivals at those LayerNorms and softmaxes of `model` whose input is one of the `stored` results."""
    sources = {
        op.key: source
        for op in graph.ops
        if op.key.kind in ("layer_norm", "softmax") and (source := source_of(op.operands[0], graph, stored)) is not None
    }
    zeros = _inputs(model, sources, torch.zeros_like)
    ones = _inputs(model, sources, torch.ones_like)
    # Tokens have channels last, maps of a convolution first; of two axes that fit the longer is no coincidence.
    numbered = {axis: _inputs(model, sources, _numbers(axis)) for axis in (-1, 1)}
    found = {}
    for key, source in sources.items():
        factor = _common(ones[key] - zeros[key])
        if factor is None:
            continue
        found[key] = Arrival(source, factor)
        if key.kind == "softmax":
            continue
        shape = graph.by_key[source].shape
        fitting = [
            (shape[axis], Arrival(source, factor, axis % len(shape), channels))
            for axis, inputs in numbered.items()
            if (channels := _channels((inputs[key] - zeros[key]) / factor)) is not None
        ]
        if fitting:
            found[key] = max(fitting, key=lambda each: each[0])[1]
    return found


@torch.no_grad()
def _inputs(model: VisionModel, sources: dict[OpKey, OpKey], make: Callable[[Tensor], Tensor]) -> dict[OpKey, Tensor]:
    """Inputs of the keys of `sources` when the results in its values are replaced by what `make` makes of them."""
    seen: dict[OpKey, Tensor] = {}

    def keep(key: OpKey) -> Transform:
        def transform(x: Tensor) -> Tensor:
            seen[key] = x.double()
            return x

        return transform

    transforms: dict[tuple[OpKey, int], Transform] = {(key, OUTPUT): make for key in sources.values()}
    transforms |= {(key, 0): keep(key) for key in sources}
    with Interceptor(model.net, transforms):
        model.net(torch.zeros(1, *model.input_shape, device=model.device))
    return seen


def _numbers(axis: int) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[axis], dtype=x.dtype, device=x.device)
        shape = [1] * x.dim()
        shape[axis] = -1
        return numbers.view(shape).expand_as(x).clone()

    return make


def _common(x: Tensor) -> float | None:
    """The one positive value of all entries; entries masked with infinity do not count."""
    values = x[x.isfinite()]
    if not len(values):
        return None
    first = float(values[0])
    return first if first > 0 and bool(((values - first).abs() <= _TOLERANCE * first).all()) else None


def _channels(x: Tensor) -> Tensor | None:
    """Numbers along the last axis if they are whole and the same in every row, else None."""
    rows = x.flatten(0, -2)
    rounded = rows[0].round()
    return rounded.long() if bool(((rows - rounded).abs() <= _TOLERANCE).all()) else None
