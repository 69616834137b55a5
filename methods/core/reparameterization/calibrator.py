"""RepQ-ViT: one quantized pass sets all quantizers, then LayerNorm's per-channel ones are made per-tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.calibrate import SiteNotReachedError, watch
from methods.core.graph.intercept import OUTPUT, Interceptor, Transform
from methods.core.graph.sites import ActivationSite, Point, Sites, WeightSite, comes_from, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.logarithmic import FractionalZero, LogSqrt2, UnclippedZero
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized
from methods.core.reparameterization.fold import Pair, find_pairs, fold
from methods.core.reparameterization.options import RepqOptions


class RepQ:
    """The calibrator. Nothing is optimised: it takes one pass over the images, all of them at once."""

    def __init__(self, options: RepqOptions) -> None:
        self.options = options

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Weights per output channel; activations per tensor, from a pass in which all that lies before is quantized.

        In scheme `full`, where LayerNorm outputs are sites themselves, these are reparameterised; softmax outputs are
        no sites there and stay in float.
        """
        return self.folded(model, images, spec=spec, scheme=scheme, ctx=ctx)[1]

    @torch.no_grad()
    def folded(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> tuple[nn.Module, Quantized]:
        """The float network as reparameterised, which computes what it did, and it quantized."""
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        pairs = [] if self.options.layer_norms == "per-tensor" else find_pairs(model.net, graph, images[:1])
        channels = {pair: pair_points(pair, sites) for pair in pairs}
        weights = self._weights(model.net, sites.weights)
        rounded = Quantized(model.net, sites, weights, None).net
        activations = self._first_pass(rounded, images, sites, graph, channels)
        if self.options.layer_norms == "per-channel":
            return model.net, Quantized(model.net, sites, weights, activations)

        net = copy.deepcopy(model.net)
        for pair, points in channels.items():
            before = activations[points[0]]
            assert isinstance(before, Uniform)
            after = merge(before, self.options.reduction, round_zero_point=self.options.round_zero_point)
            fold(net, pair, before, after)
            activations.update(dict.fromkeys(points, after))
        changed = {f"{key.module}.weight" for pair in pairs for key in pair.linears}
        weights |= self._weights(net, tuple(site for site in sites.weights if site.parameter in changed))
        ctx.count(reparameterized=len(pairs))
        return net, Quantized(net, sites, weights, activations)

    def _weights(self, net: nn.Module, sites: tuple[WeightSite, ...]) -> dict[str, Uniform]:
        parameters = dict(net.named_parameters())
        return {
            s.parameter: percentile_quantizer(
                parameters[s.parameter], s.bits, self.options.percentiles, granularity=PerChannel(s.axis)
            )
            for s in sites
        }

    def _first_pass(
        self, net: nn.Module, images: Tensor, sites: Sites, graph: Trace, channels: Mapping[Pair, list[Point]]
    ) -> dict[Point, Quantizer]:
        """Quantizers of all activations, from the network with rounded weights. Each is made from the tensor that
        passes it and used at once, so all images run together. Where several pass, it is made from all of them before.
        """
        leaders = {point: points[0] for points in channels.values() for point in points}
        made: dict[Point, Quantizer] = dict(self._before(net, images, sites, graph))
        repeated = [s for s in sites.activations if len(graph.runs[s.op]) > 1 and s.point not in made]
        made |= self._of_all_runs(net, images, repeated, graph)

        def first_use(site: ActivationSite) -> Transform:
            point = leaders.get(site.point, site.point)  # layers behind one LayerNorm share a quantizer

            def transform(x: Tensor) -> Tensor:
                if point not in made:
                    made[point] = self._activation(site, graph, x, per_channel=point in leaders)
                made[site.point] = made[point]
                return made[point](x)

            return transform

        with Interceptor(net, {site.point: first_use(site) for site in sites.activations}):
            net(images)
        lost = [site for site in sites.activations if site.point not in made]
        if lost:
            raise SiteNotReachedError(f"{len(lost)} activation sites were not reached, the first is {lost[0]}")
        return made

    def _of_all_runs(
        self, net: nn.Module, images: Tensor, sites: Sequence[ActivationSite], graph: Trace
    ) -> dict[Point, Quantizer]:
        """Quantizers from the values of all runs together, with all activations in float: the first run would be
        quantized before the others are known.
        """
        if not sites:
            return {}
        values: dict[Point, list[Tensor]] = {site.point: [] for site in sites}

        def keeper(point: Point) -> Callable[[Tensor], object]:
            return lambda x: values[point].append(x.flatten().clone())  # the network may add to it in place

        watch(net, images, {point: keeper(point) for point in values}, len(images))
        # No LayerNorm that runs several times is in a pair, so these are per tensor.
        return {
            site.point: self._activation(site, graph, torch.cat(runs), per_channel=False)
            for site in sites
            if (runs := values.pop(site.point))
        }

    def _before(self, net: nn.Module, images: Tensor, sites: Sites, graph: Trace) -> Mapping[Point, Quantizer]:
        """Quantizers that are known before the pass."""
        return {}

    def _activation(self, site: ActivationSite, graph: Trace, x: Tensor, *, per_channel: bool) -> Quantizer:
        percentiles = self.options.percentiles
        if per_channel:
            found = percentile_quantizer(x, site.bits, percentiles, granularity=PerChannel(x.dim() - 1))
            return UnclippedZero(found.scale, found.zero_point, found.qmin, found.qmax, found.granularity)
        if comes_from(site, graph, "softmax"):
            return self._softmax(site, x)
        return percentile_quantizer(x, site.bits, percentiles, widen=True)

    def _softmax(self, site: ActivationSite, x: Tensor) -> Quantizer:
        """The quantizer of a tensor that softmax made."""
        return LogSqrt2.of(x, site.bits, self.options.percentiles, extra=self.options.zero_code == "extra")


def pair_points(pair: Pair, sites: Sites) -> list[Point]:
    """The pair's sites: LayerNorm's output (scheme `full`), or the linear layers' inputs (`matmul`)."""
    points = {site.point for site in sites.activations}
    return [p for p in ((pair.norm, OUTPUT), *((key, 0) for key in pair.linears)) if p in points]


def merge(
    channels: Uniform, reduction: Literal["mean", "median"] = "mean", *, round_zero_point: bool = True
) -> Uniform | FractionalZero:
    """One quantizer for a LayerNorm's output from its channels', whose scales and zero points are (c,)."""

    def reduce(values: Tensor) -> Tensor:
        return values.mean() if reduction == "mean" else values.median()

    scale = reduce(channels.scale)
    # Any zero point would do, since LayerNorm's shift makes up for it; within the codes, 0 can be represented.
    zero = reduce(channels.zero_point.double()).clamp(0, channels.qmax)
    if round_zero_point:
        return Uniform(scale, zero.round().to(torch.int32), 0, channels.qmax)
    return FractionalZero(scale, zero.to(scale.dtype), channels.qmax)
