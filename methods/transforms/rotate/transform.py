"""Rotations of a float network, folded into a copy of its weights.

R1 turns the residual stream: what writes it is centred and turned, LayerNorms lose scale and shift to the layers behind
them, and these are turned back. R2 turns queries and keys of a head alike, whose products stay. R3 turns a head's
values, and back in the projection. All is computed in double precision; outputs differ by rounding alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from harness.api.contracts import RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.plain import plain_layers
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.reparameterization.fold import add_to_bias
from methods.transforms.rotate.hadamard import mean_kept, rotation
from methods.transforms.rotate.heads import Channels, attentions, query_channels, value_channels, why_not
from methods.transforms.rotate.info import RotateOptions
from methods.transforms.rotate.stream import NotAStreamError, Stream, find_stream


class Rotate:
    """The transform."""

    def __init__(self, options: RotateOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Heads must be such that rotating them changes nothing."""
        o, graph = self.options, trace(model)
        plain = plain_layers(model.net, graph, nn.Linear)
        for attention in attentions(graph, find_blocks(graph)):
            reason = why_not(plain, attention, queries=o.queries, values=o.values)
            if reason is not None:
                return f"rotate: {reason}"
        return None

    @torch.no_grad()
    def transform(self, model: VisionModel, images: Tensor, *, ctx: RunContext) -> nn.Module:
        """A rotated copy of `model.net`."""
        o, graph, net = self.options, trace(model), copy.deepcopy(model.net)
        blocks = find_blocks(graph)
        done: dict[str, str] = {}
        found, image = attentions(graph, blocks), images[:1]
        for name, wanted, read in (("queries", o.queries, query_channels), ("values", o.values, value_channels)):
            for attention, (first, second) in zip(found, read(model.net, found, image), strict=True) if wanted else ():
                done[f"{name} of {attention.path}"] = _turn_heads(
                    net, first, second, generator=ctx.generator("rotate", name, attention.path), back=name == "values"
                )
        if o.residual:
            try:
                stream = find_stream(model.net, graph, blocks)
            except NotAStreamError as reason:
                done["residual stream"] = f"as it was, since {reason}"
            else:
                turn, exact = rotation(stream.width, ctx.generator("rotate", "residual"))
                _turn_stream(net, stream, mean_kept(turn))
                done["residual stream"] = _named(stream.width, hadamard=exact)
        ctx.diagnostics("rotations", done)
        return net


def _named(size: int, *, hadamard: bool) -> str:
    return f"{size} channels, {'a Hadamard matrix' if hadamard else 'a random orthogonal matrix'}"


def _turn_heads(net: nn.Module, first: Channels, second: Channels, *, generator: torch.Generator, back: bool) -> str:
    """Rotate every head's channels by a matrix of its own, and in the second layer alike, or `back` in its inputs."""
    heads, d = first.places.shape
    exact = True
    for head in range(heads):
        turn, exact = rotation(d, generator)
        _turn_rows(net, first.layer, turn, first.places[head])
        (_turn_columns if back else _turn_rows)(net, second.layer, turn, second.places[head])
    return f"{heads} heads of {_named(d, hadamard=exact)}"


def _turn_stream(net: nn.Module, stream: Stream, turn: Tensor) -> None:
    """X becomes x M Q everywhere, with M the projection that takes the mean away and Q the rotation."""
    moved = turn - turn.mean(0)  # M Q, as M = 1 - 11'/c
    for key in stream.writers:
        _turn_rows(net, key.module, moved)
    for name in stream.parameters:
        parameter = net.get_parameter(name)
        parameter.copy_(parameter.double() @ moved.to(parameter.device))
    for norm, layers in stream.readers.items():
        module = net.get_submodule(norm.module)
        scale = module.get_parameter("weight").double()
        shift = None if module.bias is None else module.get_parameter("bias").double()
        for key in layers:
            layer = net.get_submodule(key.module)
            weight = layer.get_parameter("weight")
            if shift is not None:
                add_to_bias(net, key.module, weight.double() @ shift)
            weight.copy_(weight.double() * scale)
            _turn_columns(net, key.module, turn)
        module.get_parameter("weight").fill_(1.0)
        if shift is not None:
            module.get_parameter("bias").zero_()


def _turn_rows(net: nn.Module, layer: str, turn: Tensor, places: Tensor | None = None) -> None:
    """The layer's outputs (at `places`, or all) times `turn`."""
    module = net.get_submodule(layer)
    for tensor in (module.weight, module.bias):
        if isinstance(tensor, Tensor):
            own = slice(None) if places is None else places
            rows = tensor[own].double()
            tensor[own] = (turn.T.to(rows.device) @ rows.flatten(1 if rows.dim() > 1 else 0)).view_as(rows).to(tensor)


def _turn_columns(net: nn.Module, layer: str, turn: Tensor, places: Tensor | None = None) -> None:
    """The layer's weight such that it takes its inputs (at `places`, or all) times `turn`."""
    weight = net.get_submodule(layer).get_parameter("weight")
    own = slice(None) if places is None else places
    weight[:, own] = (weight[:, own].double() @ turn.to(weight.device)).to(weight)
