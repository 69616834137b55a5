"""Layers into which something can be folded."""

from __future__ import annotations

from torch import nn

from methods.core.graph.flow import Op
from methods.core.graph.intercept import OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.trace import Trace


def plain_layers(net: nn.Module, graph: Trace, kind: type[nn.Linear] | type[nn.Conv2d]) -> set[OpKey]:
    """Operations of layers of the class `kind` that run once, with their own weight and bias, which nothing else uses.

    One without a bias has the forward of its class, so that it takes a bias that it is given.
    """
    modules = dict(net.named_modules())

    def plain(op: Op) -> bool:
        layer = modules.get(op.key.module)
        if not isinstance(layer, kind) or len(graph.runs[op.key]) > 1 or not graph.owns(op.key, "weight"):
            return False
        return type(layer).forward is kind.forward if layer.bias is None else graph.owns(op.key, "bias")

    return {op.key for op in graph.ops if op.key.kind in LAYERS and plain(op)}
