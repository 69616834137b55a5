"""MLPs whose GELU becomes a ReLU, their two layers trained in float to give what they gave (after APHQ-ViT)."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api.contracts import RunContext
from methods.calibrators.glfq.info import GlfqOptions
from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, OpKey, tap
from methods.core.graph.plain import plain_layers
from methods.core.graph.trace import Trace

# Of the known activation functions; quick-gelu is another one.
_GELU_FORMS = ("gelu", "gelu-tanh")


@dataclass(frozen=True)
class Mlp:
    """A GELU module and the linear layers before and behind it."""

    first: OpKey
    gelu: OpKey
    second: OpKey


def find_mlps(net: nn.Module, graph: Trace) -> list[Mlp]:
    """MLPs in the part of the network that is quantized, in execution order: a linear layer whose result goes to an
    `nn.GELU` alone, and that one's to a linear layer alone. Both layers change, so both are plain (`plain_layers`).

    One whose GELU module has other work too is none: a ReLU would come there as well, with no layers trained for it.
    """
    plain = plain_layers(net, graph, nn.Linear)
    found = []
    for op in _gelus(net, graph):
        sources, consumers = op.operands[0].ops, graph.consumers[op.key]
        if len(sources) != 1 or len(consumers) != 1 or len(graph.runs[op.key]) > 1:
            continue
        (first,), second = sources, consumers[0].key
        alone = [consumer.key for consumer in graph.consumers[first]] == [op.key]
        if graph.inside(op.key) and alone and {first, second} <= plain:
            found.append(Mlp(first, op.key, second))
    # A module may have several names: one in each that holds it.
    calls = Counter(net.get_submodule(op.key.module) for op in _gelus(net, graph))
    taken = Counter(net.get_submodule(mlp.gelu.module) for mlp in found)
    own = {module for module, count in taken.items() if count == calls[module]}
    return [mlp for mlp in found if net.get_submodule(mlp.gelu.module) in own]


def left_alone(net: nn.Module, graph: Trace, mlps: Sequence[Mlp]) -> list[str]:
    """Where the quantized part of the network keeps a GELU: its module, or the one whose forward computes it."""
    taken = {net.get_submodule(mlp.gelu.module) for mlp in mlps}
    gelus = [op for op in graph.ops if op.function is not None and op.function.name in _GELU_FORMS]
    names = dict.fromkeys(op.key.module for op in gelus if graph.inside(op.key) and op.key not in graph.steps)
    return [name for name in names if net.get_submodule(name) not in taken]


def _gelus(net: nn.Module, graph: Trace) -> list[Op]:
    """All calls of GELU modules."""
    return [op for op in graph.of_kind("activation") if isinstance(net.get_submodule(op.key.module), nn.GELU)]


def with_relu(net: nn.Module, graph: Trace, images: Tensor, options: GlfqOptions, ctx: RunContext) -> nn.Module:
    """A copy of `net` with a ReLU in every MLP, whose layers are trained on what `net` computes for `images`."""
    student = copy.deepcopy(net)
    generator = ctx.generator("mlp-reconstruction")
    mlps = find_mlps(net, graph)
    for number, mlp in enumerate(mlps):
        ctx.progress(f"mlp {number + 1}/{len(mlps)}", number / len(mlps))
        _train(net, student, mlp, images, options=options, generator=generator)
    _replace(student, {student.get_submodule(mlp.gelu.module) for mlp in mlps})
    ctx.count(mlps_reconstructed=len(mlps))
    if left := left_alone(net, graph, mlps):
        ctx.diagnostics("glfq-gelus", {"left": left})
    return student


def _replace(student: nn.Module, gelus: set[nn.Module]) -> None:
    """Put a ReLU in place of each module, wherever it is held: two attributes may hold the same one."""
    relus = {gelu: nn.ReLU() for gelu in gelus}
    for parent in list(student.modules()):
        for name, child in list(parent._modules.items()):
            if child in relus:
                setattr(parent, name, relus[child])


def _train(
    net: nn.Module, student: nn.Module, mlp: Mlp, images: Tensor, *, options: GlfqOptions, generator: torch.Generator
) -> None:
    inputs, hidden, outputs = _seen(net, mlp, images, options.batch)
    # By selection, since torch.quantile stops at 2^24 values.
    positive = hidden[hidden > 0]
    rank = max(1, math.ceil(options.mlp_quantile * positive.numel()))
    top = float(positive.kthvalue(rank).values) if positive.numel() else math.inf
    del hidden, positive
    layers = [student.get_submodule(key.module) for key in (mlp.first, mlp.second)]
    own = [{name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()} for layer in layers]
    optimiser = torch.optim.Adam([p for values in own for p in values.values()], lr=options.mlp_lr)
    for step in range(options.mlp_steps):
        optimiser.param_groups[0]["lr"] = options.mlp_lr * 0.5 * (1.0 + math.cos(math.pi * step / options.mlp_steps))
        index = torch.randperm(len(images), generator=generator)[: options.batch].to(images.device)
        x, target = inputs[index], outputs[index]
        middle = functional.linear(x, own[0]["weight"], own[0].get("bias")).relu()
        value = _error(middle, own[1], target)
        if options.mlp_clipped:
            value = value + options.mlp_clipped * _error(middle.clamp(max=top), own[1], target)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    with torch.no_grad():
        for layer, values in zip(layers, own, strict=True):
            for name, value in values.items():
                layer.get_parameter(name).copy_(value)


def _error(hidden: Tensor, layer: dict[str, Tensor], target: Tensor) -> Tensor:
    return functional.mse_loss(functional.linear(hidden, layer["weight"], layer.get("bias")), target)


def _seen(net: nn.Module, mlp: Mlp, images: Tensor, batch: int) -> list[Tensor]:
    """Input of the first layer, and input and output of the second, of all images (n, ...)."""
    points = [(mlp.first, 0), (mlp.second, 0), (mlp.second, OUTPUT)]
    parts = []
    for part in images.split(batch):
        found = tap(net, part, points)[1]
        parts.append([found[point].unflatten(0, (len(part), -1)) for point in points])
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
