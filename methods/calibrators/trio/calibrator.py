"""Trio-ViT's three transformations on min-max quantizers."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.trio.divisors import Places, PowerOfTwo, Quotient
from methods.calibrators.trio.info import TrioOptions
from methods.calibrators.trio.moves import (
    Behind,
    Move,
    centring,
    made_up_for,
    migration,
)
from methods.calibrators.trio.places import Divisor, Place, find_convolutions, find_divisors
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.sites import Point, Sites, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.observers import OBSERVERS, ChannelEnds, MinMax, Observer
from methods.core.numerics.quantizers import Quantizer
from methods.core.quantized import Quantized


class Trio:
    """The calibrator: float passes for the ranges of channels, of all sites, and of divisors."""

    def __init__(self, options: TrioOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """It changes nothing where there are no such layers."""
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        if find_convolutions(model, graph, sites) or find_divisors(model, graph, sites):
            return None
        return (
            "Trio-ViT is for depthwise convolutions, pointwise ones behind an activation function, and quotients of "
            "linear attention, of which the network has none; use minmax"
        )

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Weights per channel and activations per tensor of the transformed network."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        moves = self._moves(model, images, graph, sites)
        own = {place.point: move for place, move in moves.items()}
        divisors = find_divisors(model, graph, sites) if o.divisor == "log2" else []
        make = OBSERVERS[o.ranges]
        seen: dict[Point, Observer] = {point: Behind(move, make()) for point, move in own.items()}
        seen |= {each.point: Behind(Places(each.places, others=True), make()) for each in divisors if each.places}
        observers = observe(model, images, sites, make, o.batch, instead=seen)
        uniform = activation_quantizers(sites, observers)
        activations: dict[Point, Quantizer] = {
            point: own[point].quantizer(base) if point in own else base for point, base in uniform.items()
        }
        largest = self._largest(model, images, sites, divisors)
        widths = {site.point: site.bits for site in sites.activations}
        for each in divisors:
            power = PowerOfTwo.of(o.least_exponent, o.largest_exponent, widths[each.point], largest[each.point])
            activations[each.point] = Quotient(uniform[each.point], power, each.places) if each.places else power
        net = made_up_for(model.net, moves)
        weights = weight_quantizers(replace(model, net=net), sites, symmetric=o.weights == "symmetric")
        shapes = [place.shape for place in moves]
        ctx.count(
            shifted=shapes.count("pointwise"), migrated=shapes.count("depthwise"), logarithmic_divisors=len(divisors)
        )
        return Quantized(net, sites, weights, activations)

    def _largest(
        self, model: VisionModel, images: Tensor, sites: Sites, divisors: list[Divisor]
    ) -> dict[Point, Tensor]:
        """The largest values of all divisors."""
        if not divisors:
            return {}
        seen = {each.point: Behind(Places(each.places), MinMax()) for each in divisors}
        found = observe(model, images, _only(sites, seen), MinMax, self.options.batch, instead=seen)
        return {point: observer.range(0)[1] for point, observer in found.items()}

    def _moves(self, model: VisionModel, images: Tensor, graph: Trace, sites: Sites) -> dict[Place, Move]:
        o = self.options
        wanted = {"pointwise": o.shift != "none", "depthwise": o.migration}
        places = {place.point: place for place in find_convolutions(model, graph, sites) if wanted[place.shape]}
        if not places:
            return {}
        ends = observe(model, images, _only(sites, places), partial(ChannelEnds, 1), o.batch)
        moves = {}
        for point, place in places.items():
            low, high = ends[point].range(0)
            if place.shape == "pointwise":
                moves[place] = centring(low, high, printed=o.shift == "printed")
            else:
                moves[place] = migration(high, o.least_factor, o.largest_factor)
        return moves


def _only(sites: Sites, points: Container[Point]) -> Sites:
    """Of the activation sites those at `points`."""
    return replace(sites, activations=tuple(site for site in sites.activations if site.point in points))
