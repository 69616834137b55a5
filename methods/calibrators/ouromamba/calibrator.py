"""OuroMamba's quantizer (ICCV 2025) as a calibrator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.ouromamba.info import OuroMambaOptions
from methods.calibrators.ouromamba.quantizer import Tokens
from methods.calibrators.ouromamba.scales import Largest, Shrinking, largest_code, weight_grid
from methods.calibrators.ouromamba.training import train_steps
from methods.core.calibrate import activation_quantizers, observe, watch
from methods.core.graph.intercept import OUTPUT, Transform
from methods.core.graph.sites import ActivationSite, Point, Sites, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.observers import MinMax
from methods.core.numerics.quantizers import Quantizer
from methods.core.quantized import Quantized


class OuroMamba:
    """Tokens have a step for every position and outlier channels in more bits; everything else is uniform."""

    def __init__(self, options: OuroMambaOptions) -> None:
        self.options = options

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Steps from float passes over `images` (n, c, h, w), trained block by block; then the outliers are counted."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        tokens = _of_tokens(model, graph, sites, images)
        quantizers: dict[Point, Quantizer] = dict(self._positions(model, images, tokens))
        others = replace(sites, activations=tuple(s for s in sites.activations if s.point not in quantizers))
        quantizers |= activation_quantizers(others, observe(model, images, others, MinMax, o.batch))
        parameters = dict(model.net.named_parameters())
        weights = {
            site.parameter: weight_grid(
                parameters[site.parameter], site.bits, ratios=o.ratios, norm=o.norm, axis=site.axis
            )
            for site in sites.weights
        }
        quantized = Quantized(model.net, sites, weights, quantizers)
        if o.epochs:
            train_steps(model, graph, quantized, images, options=o, ctx=ctx)
        counted = self._count(quantized, tokens, images)
        assert quantized.activations is not None
        quantized.set_activations({**quantized.activations, **counted})
        ctx.diagnostics("ouromamba", _told(tokens, counted))
        return quantized

    @torch.no_grad()
    def _positions(self, model: VisionModel, images: Tensor, tokens: list[ActivationSite]) -> dict[Point, Tokens]:
        """Quantizers of tokens, from a pass for the largest inliers and one for the errors."""
        o = self.options
        largest = {site.point: Largest(o.deviations) for site in tokens}
        watch(model.net, images, {point: each.update for point, each in largest.items()}, o.batch)
        shrinking: dict[Point, Shrinking] = {}
        for site in tokens:
            value = largest[site.point].value
            assert value is not None
            shrinking[site.point] = Shrinking(
                value, largest_code(site.bits), ratios=o.ratios, norm=o.norm, deviations=o.deviations
            )
        watch(model.net, images, {point: each.update for point, each in shrinking.items()}, o.batch)
        return {
            site.point: Tokens(
                shrinking[site.point].step(), site.bits, o.outlier_bits or 2 * site.bits, o.refresh, o.deviations
            )
            for site in tokens
        }

    @torch.no_grad()
    def _count(self, quantized: Quantized, tokens: list[ActivationSite], images: Tensor) -> dict[Point, Tokens]:
        """The quantizers of tokens, with what they count on the calibration images."""
        assert quantized.activations is not None
        found: dict[Point, Tokens] = {}

        def counting(point: Point, quantizer: Tokens) -> Transform:
            def transform(x: Tensor) -> Tensor:
                before = found[point].counted or (0, 0, 0)
                values, listed, steps = quantizer.count(x)
                found[point] = replace(quantizer, counted=(before[0] + values, before[1] + listed, before[2] + steps))
                return quantizer(x)

            return transform

        interceptor = quantized.interceptor()
        for site in tokens:
            quantizer = quantized.activations[site.point]
            assert isinstance(quantizer, Tokens)
            found[site.point] = quantizer
            interceptor.transforms[site.point] = counting(site.point, quantizer)
        with interceptor:
            for part in images.split(self.options.batch):
                quantized.net(part)
        return found


def _told(tokens: list[ActivationSite], found: Mapping[Point, Tokens]) -> dict[str, Any]:
    """The shares of values in outlier channels, for the record."""
    counts = {str(site): (found[site.point], found[site.point].counted or (0, 0, 0)) for site in tokens}
    values = max(1, sum(count[0] for _, count in counts.values()))
    bits = sum(q.bits * (count[0] - count[1]) + q.outlier_bits * count[1] for q, count in counts.values())
    return {
        "outlier_share": round(sum(count[1] for _, count in counts.values()) / values, 6),
        "mean_bits": round(bits / values, 4),
        "token_sites": len(tokens),
        "outlier_shares": {label: round(count[1] / max(1, count[0]), 6) for label, (_, count) in counts.items()},
    }


def _of_tokens(model: VisionModel, graph: Trace, sites: Sites, images: Tensor) -> list[ActivationSite]:
    """Sites that hold (n, tokens, channels) of the images."""
    few = images[:2]
    shapes: dict[Point, tuple[int, ...]] = {}

    def note(point: Point) -> Callable[[Tensor], None]:
        return lambda x: shapes.update({point: tuple(x.shape)})

    watch(model.net, few, {site.point: note(site.point) for site in sites.activations}, len(few))
    return [
        site
        for site in sites.activations
        if len(shapes.get(site.point, ())) == 3
        and shapes[site.point][0] == len(few)
        and graph.by_key[site.op].batched
        and (site.slot == OUTPUT or not graph.by_key[site.op].operands[site.slot].is_parameter)
    ]
