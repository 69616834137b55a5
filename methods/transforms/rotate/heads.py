"""Queries, keys and values of attention heads: which channels of which linear layers they are.

Found from the data flow. Channels are told by running the network with each layer's output replaced by its channels'
numbers, so that how a network reshapes them plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.api.errors import UsageError
from methods.core.graph.attention import query_key_product
from methods.core.graph.flow import Op, Operand
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, Transform, tap_transforms
from methods.core.graph.structure import Block
from methods.core.graph.trace import Trace

Point = tuple[OpKey, int]
_NEAR = 1e-3  # of a channel's number, which may have been scaled


@dataclass(frozen=True)
class Attention:
    """The two products of one attention, and the layer that takes what the second one gives."""

    path: str
    products: tuple[Op, Op]
    projection: Op | None


@dataclass(frozen=True)
class Channels:
    """Where each channel of each head lies in a linear layer's output or input: `places` (heads, d)."""

    layer: str
    places: Tensor


def attentions(graph: Trace, blocks: list[Block]) -> list[Attention]:
    """Those of all blocks that are quantized."""
    found = []
    for block in blocks:
        first, second = query_key_product(graph, graph.by_key[block.softmax]), graph.by_key[block.context[0]]
        if graph.inside(first.key):
            consumers = graph.consumers[second.key]
            found.append(Attention(block.path, (first, second), consumers[0] if len(consumers) == 1 else None))
    return found


def why_not(plain: Set[OpKey], attention: Attention, *, queries: bool, values: bool) -> str | None:
    """One sentence on why heads cannot be rotated, or None; `plain` are the linear layers that others fold into."""
    first, second = attention.products
    if queries:
        for operand in first.operands:
            if _layer(plain, operand) is None:
                return (
                    f"queries and keys of {attention.path} come from {_between(operand)}, into which no rotation can "
                    "be folded; rotate[queries=false] leaves them"
                )
    if values:
        made, taken = _layer(plain, second.operands[1]), attention.projection
        straight = taken is not None and taken.operands[0].ops == {second.key} and not taken.operands[0].altered
        if made is None or taken is None or not straight or taken.key not in plain:
            return (
                f"values of {attention.path} come from {_between(second.operands[1])} and go through attention, not "
                "straight from one plain linear layer into another; rotate[values=false] leaves them"
            )
    return None


def _layer(plain: Set[OpKey], operand: Operand) -> OpKey | None:
    """The plain linear layer whose output an operand is, moved or times a number; None if it is something else."""
    if len(operand.ops) != 1 or operand.parameters or operand.others or operand.altered:
        return None
    (key,) = operand.ops
    return key if key in plain else None


def _between(operand: Operand) -> str:
    return ", ".join(sorted(map(str, operand.ops))) + (" and a scale of every channel" if operand.altered else "")


@torch.no_grad()
def query_channels(net: nn.Module, found: list[Attention], image: Tensor) -> list[tuple[Channels, Channels]]:
    """Of each attention: queries and keys in the outputs of their layers.

    Raises:
        UsageError: a channel cannot be told.
    """
    firsts = [attention.products[0] for attention in found]
    points = [(op.key, slot) for op in firsts for slot in (0, 1)]
    read = _read(
        net, points, {(key, OUTPUT): _of_layer for op in firsts for each in op.operands for key in each.ops}, image
    )
    return [
        (
            Channels(_module(op.operands[0]), _places(_tokens(read[op.key, 0]), op)),
            Channels(_module(op.operands[1]), _places(_tokens(read[op.key, 1].mT), op)),
        )
        for op in firsts
    ]


@torch.no_grad()
def value_channels(net: nn.Module, found: list[Attention], image: Tensor) -> list[tuple[Channels, Channels]]:
    """Of each attention: values in the output of their layer, and in the input of the projection.

    Raises:
        UsageError: a channel cannot be told.
    """
    pairs = [(each.products[1], each.projection) for each in found if each.projection is not None]
    points = [point for op, taken in pairs for point in ((op.key, 1), (taken.key, 0))]
    sources = {(key, OUTPUT): _of_layer for op, _ in pairs for key in op.operands[1].ops}
    read = _read(net, points, {**sources, **{(op.key, OUTPUT): _of_heads for op, _ in pairs}}, image)
    all_of = []
    for op, taken in pairs:
        numbers = _places(read[taken.key, 0].flatten(0, -2)[:, None], taken)[0]
        order = torch.empty_like(numbers)
        order[numbers] = torch.arange(len(numbers), device=numbers.device)
        made = Channels(_module(op.operands[1]), _places(_tokens(read[op.key, 1]), op))
        all_of.append((made, Channels(taken.key.module, order.view_as(made.places))))
    return all_of


def _read(
    net: nn.Module, points: list[Point], numbered: Mapping[Point, Transform], image: Tensor
) -> dict[Point, Tensor]:
    """What is at `points` when the `numbered` tensors hold channels' numbers, divided by what ones become."""
    runs: list[dict[Point, Tensor]] = []
    for transforms in (numbered, dict.fromkeys(numbered, torch.ones_like)):
        seen: dict[Point, Tensor] = {}
        with Interceptor(net, {**tap_transforms(points, seen), **transforms}):
            net(image)
        runs.append(seen)
    return {point: runs[0][point] / runs[1][point] for point in points}


def _places(numbers: Tensor, op: Op) -> Tensor:
    """Channels (heads, d) of (tokens, heads, d), which are numbered from 1 and the same in all tokens."""
    first = numbers[0]
    same = bool((numbers - first).abs().max() < _NEAR) and bool((first - first.round()).abs().max() < _NEAR)
    whole = first.round().long() - 1
    if not same or len(whole.unique()) != whole.numel():
        raise UsageError(f"rotate: which channels {op.key} takes cannot be told, so that heads cannot be rotated")
    return whole


def _tokens(x: Tensor) -> Tensor:
    """(rows, heads, tokens, d) as (rows * tokens, heads, d)."""
    return x.transpose(1, 2).flatten(0, 1)


def _module(operand: Operand) -> str:
    (key,) = operand.ops
    return key.module


def _of_layer(x: Tensor) -> Tensor:
    """The number of every channel of (..., c), from 1."""
    return torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype).expand_as(x)


def _of_heads(x: Tensor) -> Tensor:
    """The same of (rows, heads, tokens, d), one head after the other."""
    heads, d = x.shape[1], x.shape[3]
    return torch.arange(1, heads * d + 1, device=x.device, dtype=x.dtype).view(heads, 1, d).expand_as(x)
