"""Layers in execution order, each rounded by `compensated` on inputs from all before it as they are then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.compensation.columns import Rounder, compensated
from methods.core.compensation.options import CompensationOptions
from methods.core.graph.intercept import Transform
from methods.core.graph.segments import cut
from methods.core.graph.sites import WeightSite, find_sites
from methods.core.graph.structure import find_pieces
from methods.core.graph.trace import Trace, trace
from methods.core.microscaling import activations_in_formats
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.observers import OBSERVERS
from methods.core.numerics.quantizers import Stored
from methods.core.quantized import Quantized
from methods.core.reconstruction.units import LayerUnit, SegmentUnit
from methods.core.reconstruction.walk import Inputs, Walk

_AT_ONCE = 32  # images
_CHUNK = 2**24  # values of inputs that are turned to double at once


@dataclass(frozen=True)
class Given:
    """A weight's quantizer that gives the values that were found once.

    Attributes:
        base: the quantizer on whose values they lie.
        values: of the weight's shape.
    """

    base: Transform
    values: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return self.values.to(weight)

    def stored_as(self, bits: int) -> Stored | None:
        """As the base."""
        tell = getattr(self.base, "stored_as", None)
        return None if tell is None else tell(bits)


class Compensation(ABC):
    """A calibrator; subclasses say how columns are rounded, and may change the float network before."""

    options: CompensationOptions

    @abstractmethod
    def start_weights(self, net: nn.Module, sites: tuple[WeightSite, ...]) -> dict[str, Transform]:
        """Quantizers of all weights that round to the nearest, as they stay where nothing is compensated."""

    @abstractmethod
    def rounder(self, site: WeightSite, quantizer: Transform) -> Rounder:
        """Rounds the columns of the weight at `site`, whose first quantizer is given."""

    @abstractmethod
    def finished(self, site: WeightSite, quantizer: Transform, rounder: Rounder, rounded: Tensor) -> Transform:
        """The weight's quantizer from its first one, the rounder after its work and what it gave, which is of the
        weight's shape.
        """

    def float_network(self, model: VisionModel, graph: Trace, images: Tensor, ctx: RunContext) -> nn.Module:
        """The float network that is quantized, which computes what the model's does."""
        return model.net

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Activations from one float pass over `images` (n, c, h, w); then weights, layer by layer."""
        graph = trace(model)
        net = self.float_network(model, graph, images, ctx)
        sites = find_sites(graph, scheme, spec)
        changed = model if net is model.net else replace(model, net=net)
        activations = activations_in_formats(
            changed, images, sites, OBSERVERS[self.options.activation_ranges], _AT_ONCE
        )
        quantized = Quantized(net, sites, self.start_weights(net, sites.weights), activations)
        blocks = find_pieces(graph)
        floats, quants = (Walk(each, blocks, images, _AT_ONCE) for each in (net, quantized.net))
        assert quantized.activations is not None
        transforms = dict(quantized.activations)
        segments = cut(graph, blocks, sites.weights)
        for number, segment in enumerate(segments):
            ctx.progress(f"compensate {number + 1}/{len(segments)}", number / len(segments))
            whole = SegmentUnit(floats, quants, segment, graph, transforms)
            for site in segment.layers:
                unit = LayerUnit(whole, floats, quants, site, graph=graph, transforms=transforms)
                if self._round(unit, site, net, quantized):
                    ctx.count(compensated=1)
        return quantized

    def _round(self, unit: LayerUnit, site: WeightSite, net: nn.Module, quantized: Quantized) -> bool:
        o, weight = self.options, net.get_parameter(site.parameter).detach()
        channels = PerChannel(site.axis)
        rows = channels.rows(weight)
        second = second_moments(unit, unit.inputs if o.inputs == "quantized" else unit.float_inputs, rows.shape[1])
        if second is None:
            return False
        first = quantized.weights[site.parameter]
        rounder = self.rounder(site, first)
        found = compensated(rows, second, rounder, damping=o.damping, block=o.block)
        values = channels.whole(found.to(weight.dtype), weight)
        quantized.set_weight(site.parameter, self.finished(site, first, rounder, values))
        return True


def second_moments(unit: LayerUnit, inputs: Inputs, length: int) -> Tensor | None:
    """Σ x xᵀ (length, length) over all that a layer sums over, in double precision; None for layers whose output
    channels do not all sum over the same.
    """
    total: Tensor | None = None
    for part in unit.summed(inputs):
        if part.shape[1] != length:
            return None
        for piece in part.split(max(1, _CHUNK // length)):
            doubled = piece.double()
            product = doubled.T @ doubled
            total = product if total is None else total + product
    return total
