"""Layers into which something can be folded."""

from __future__ import annotations

from collections import Counter

from torch import nn

from methods.core.graph.intercept import OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.trace import Trace


def plain_layers(net: nn.Module, graph: Trace, kind: type[nn.Module]) -> set[OpKey]:
    """Operations of layers of the class `kind` that run once, with their own weight, which nothing else uses."""
    runs = Counter(op.key for op in graph.ops)
    users = Counter(op.weight for op in graph.ops if op.weight is not None)
    modules = dict(net.named_modules())
    return {
        op.key
        for op in graph.ops
        if op.key.kind in LAYERS
        and op.weight == f"{op.key.module}.weight"
        and isinstance(modules.get(op.key.module), kind)
        and users[op.weight] == runs[op.key] == 1
    }
