"""Where Trio-ViT's transformations apply, found by data flow and confirmed on values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, Transform, tap, tap_transforms
from methods.core.graph.plain import plain_layers
from methods.core.graph.sites import Point, Sites
from methods.core.graph.trace import Trace

Shape = Literal["pointwise", "depthwise"]


@dataclass(frozen=True)
class Place:
    """A convolution, and the site that covers its input, which nothing else takes."""

    point: Point
    conv: OpKey
    shape: Shape


@dataclass(frozen=True)
class Divisor:
    """What divides, and the site that covers it: all of the site's tensor, or the `places` along its last axis if it is
    stored with what it divides.
    """

    point: Point
    places: tuple[int, ...] = ()


def find_convolutions(model: VisionModel, graph: Trace, sites: Sites) -> list[Place]:
    """Pointwise convolutions behind an activation function, and depthwise ones, in execution order.

    Each is a plain `nn.Conv2d` that runs once with a weight of its own, and takes exactly what one operation made and
    nothing else takes.
    """
    plain = plain_layers(model.net, graph, nn.Conv2d)
    points = {site.point for site in sites.activations}
    found: list[tuple[OpKey, Place]] = []
    for op in graph.of_kind("conv"):
        if op.key not in plain:
            continue
        module, source = model.net.get_submodule(op.key.module), _source(op, graph)
        if source is None or type(module) is not nn.Conv2d:
            continue
        shape = _shape(module, source)
        point = next((p for p in ((source.key, OUTPUT), (op.key, 0)) if p in points), None)
        if shape is not None and point is not None and len(graph.runs[source.key]) == 1:
            found.append((source.key, Place(point, op.key, shape)))
    pixels = torch.linspace(-1.0, 1.0, 2 * _values(model), device=model.device).view(2, *model.input_shape)
    taps = [point for source, place in found for point in ((source, OUTPUT), (place.conv, 0))]
    _, seen = tap(model.net, pixels, taps)
    return [place for source, place in found if torch.equal(seen[source, OUTPUT], seen[place.conv, 0])]


def find_divisors(model: VisionModel, graph: Trace, sites: Sites) -> list[Divisor]:
    """Divisors of quotients of two activations whose site covers nothing else than a quotient's two sides."""
    points = {site.point for site in sites.activations}
    found = []
    for op in graph.of_kind("div"):
        if op.role != "div":
            continue
        source = _source(op, graph, 1)
        if (op.key, 1) in points:
            found.append(Divisor((op.key, 1)))
        elif source is not None and (source.key, OUTPUT) in points:
            if op.operands[0].ops != {source.key}:
                found.append(Divisor((source.key, OUTPUT)))
            elif places := _divides_itself(model, op, source):
                found.append(Divisor((source.key, OUTPUT), places))
    return found


def _divides_itself(model: VisionModel, op: Op, source: Op) -> tuple[int, ...]:
    """Places along the last axis of a result that divide the others; none if it is not cut so.

    It is seen from a pass in which the result is replaced by its places.
    """
    places = torch.arange(1.0, source.shape[-1] + 1, device=model.device)
    points = [(op.key, 0), (op.key, 1)]
    seen: dict[Point, Tensor] = {}
    numbered: dict[Point, Transform] = {(source.key, OUTPUT): lambda x: places.expand_as(x).clone()}
    with torch.no_grad(), Interceptor(model.net, {**tap_transforms(points, seen), **numbered}):
        model.net(torch.zeros(2, *model.input_shape, device=model.device))
    dividend, divisor = ({round(place) - 1 for place in seen[point].unique().tolist()} for point in points)
    return tuple(sorted(divisor)) if dividend.isdisjoint(divisor) else ()


def _source(op: Op, graph: Trace, slot: int = 0) -> Op | None:
    """The operation that made an operand which only `op` takes."""
    operand = op.operands[slot]
    if len(operand.ops) != 1 or operand.altered or operand.parameters:
        return None
    (key,) = operand.ops
    alone = [consumer.key for consumer in graph.consumers[key]] == [op.key]
    return graph.by_key[key] if alone and graph.inside(op.key) else None


def _shape(conv: nn.Conv2d, source: Op) -> Shape | None:
    if conv.groups == conv.in_channels > 1:
        return "depthwise" if conv.padding_mode == "zeros" else None
    plain = conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding in ((0, 0), "valid")
    return "pointwise" if plain and source.role == "activation" else None


def _values(model: VisionModel) -> int:
    channels, height, width = model.input_shape
    return channels * height * width
