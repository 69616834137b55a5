"""I&S-ViT as settings of the block-reconstruction engine: the three stages of its smooth optimisation strategy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.isvit.info import IsvitOptions
from methods.calibrators.isvit.sulq import Sulq
from methods.core.graph.sites import ActivationSite, Point, Sites, comes_from, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized
from methods.core.reconstruction.engine import Engine, Phase
from methods.core.reconstruction.tuning import unrounded
from methods.core.reparameterization.calibrator import RepQ, merge, pair_points
from methods.core.reparameterization.fold import Pair, find_pairs, fold
from methods.core.reparameterization.options import RepqOptions

_WIDE = 6  # weight bits from which fewer steps are enough


class Ranges(RepQ):
    """RepQ-ViT's first pass, with another quantizer for softmax outputs."""

    def __init__(self, options: IsvitOptions) -> None:
        super().__init__(RepqOptions(percentiles=options.percentiles))
        self._own = options

    def find(
        self, net: nn.Module, images: Tensor, sites: Sites, graph: Trace, channels: Mapping[Pair, list[Point]]
    ) -> dict[Point, Quantizer]:
        """Quantizers of all activations of `net`, per channel where `channels` has them."""
        with torch.no_grad():
            return dict(self._first_pass(net, images[: self._own.range_images], sites, graph, channels))

    def _activation(self, site: ActivationSite, graph: Trace, x: Tensor, *, per_channel: bool) -> Quantizer:
        o = self._own
        if comes_from(site, graph, "softmax") and not per_channel:
            if o.softmax == "shift-log2":
                return Sulq.of(x, site.bits, o.shifts, extra=o.sulq_codes == "2^b+1")
            return percentile_quantizer(x, site.bits, o.percentiles, widen=True)
        return super()._activation(site, graph, x, per_channel=per_channel)


class Isvit:
    """The calibrator. Its targets are the float model's outputs on the float model's own inputs throughout."""

    def __init__(self, options: IsvitOptions) -> None:
        self.options = options

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Stage 1: activations are quantized, LayerNorm's per channel, and float weights tuned to that. Stage 2:
        LayerNorm's scales are merged and moved into the next layer's weights, which changes no output. Stage 3:
        weights are rounded and tuned again. Step sizes stay as first found.

        In scheme `full`, where LayerNorm outputs are sites themselves, these are merged; softmax outputs are not sites
        there and stay in float.
        """
        o = self.options
        steps = o.wide_steps if spec.weight >= _WIDE else o.steps
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        channels = {pair: pair_points(pair, sites) for pair in find_pairs(model.net, graph, images[:1])}
        activations = Ranges(o).find(model.net, images, sites, graph, channels)

        net = model.net
        if o.smooth:
            tuned = Quantized(net, sites, unrounded(dict(net.named_parameters())), activations)
            engine = Engine(model, graph, tuned, images, ctx)
            engine.run(self._phase(steps, "float", "float"))
            engine.report("stage-1")
            net = tuned.net
        net, activations = merged(net, channels, activations)
        ctx.count(reparameterized=len(channels))

        parameters = dict(net.named_parameters())
        grids = {
            s.parameter: percentile_quantizer(
                parameters[s.parameter], s.bits, o.weight_percentiles, granularity=PerChannel(s.axis)
            )
            for s in sites.weights
        }
        quantized = Quantized(net, sites, grids, activations)
        engine = Engine(model, graph, quantized, images, ctx, weights=parameters)
        engine.run(self._phase(steps, o.inputs, "codes"))
        engine.report("stage-3")
        return quantized

    def _phase(self, steps: int, inputs: str, weights: Literal["float", "codes"]) -> Phase:
        o = self.options
        return Phase(
            steps=steps, batch=o.batch, inputs=inputs, weights=weights, weight_lr=o.lr, weight_cosine=True
        )  # fmt: skip


def merged(
    net: nn.Module, channels: Mapping[Pair, list[Point]], activations: Mapping[Point, Quantizer]
) -> tuple[nn.Module, dict[Point, Quantizer]]:
    """A copy of `net` with each pair's per-channel quantizer folded into a per-tensor one, and all quantizers then."""
    net, found = copy.deepcopy(net), dict(activations)
    for pair, points in channels.items():
        before = found[points[0]]
        assert isinstance(before, Uniform)
        after = merge(before)
        fold(net, pair, before, after)
        found.update(dict.fromkeys(points, after))
    return net, found
