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
from methods.core.graph.intercept import OUTPUT
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
        ctx.diagnostics("ouromamba", self._shares(quantized, tokens, images))
        return quantized

    @torch.no_grad()
    def _positions(self, model: VisionModel, images: Tensor, tokens: list[ActivationSite]) -> dict[Point, Tokens]:
        """Quantizers of tokens, from a pass for the largest inliers and one for the errors."""
        o = self.options
        largest = {site.point: Largest(o.deviations) for site in tokens}
        watch(model, images, {point: each.update for point, each in largest.items()}, o.batch)
        shrinking: dict[Point, Shrinking] = {}
        for site in tokens:
            value = largest[site.point].value
            assert value is not None
            shrinking[site.point] = Shrinking(
                value, largest_code(site.bits), ratios=o.ratios, norm=o.norm, deviations=o.deviations
            )
        watch(model, images, {point: each.update for point, each in shrinking.items()}, o.batch)
        return {
            site.point: Tokens(
                shrinking[site.point].step(), site.bits, o.outlier_bits or 2 * site.bits, o.refresh, o.deviations
            )
            for site in tokens
        }

    @torch.no_grad()
    def _shares(self, quantized: Quantized, tokens: list[ActivationSite], images: Tensor) -> dict[str, Any]:
        """Which share of the tokens' values lies in outlier channels, on the calibration images."""
        assert quantized.activations is not None
        counts: dict[str, list[int]] = {str(site): [0, 0] for site in tokens}

        def counting(site: ActivationSite, quantizer: Tokens) -> Callable[[Tensor], Tensor]:
            def transform(x: Tensor) -> Tensor:
                count = counts[str(site)]
                count[0] += int(quantizer.listed(x).sum())
                count[1] += x.numel()
                return quantizer(x)

            return transform

        watched = dict(quantized.activations)
        for site in tokens:
            quantizer = watched[site.point]
            assert isinstance(quantizer, Tokens)
            watched[site.point] = counting(site, quantizer)  # type: ignore[assignment]  # it is called, no more
        interceptor = quantized.interceptor()
        interceptor.transforms = dict(watched)
        with interceptor:
            for part in images.split(self.options.batch):
                quantized.net(part)
        return _told(counts, tokens, self.options.outlier_bits)


def _told(counts: Mapping[str, list[int]], tokens: list[ActivationSite], outlier_bits: int | None) -> dict[str, Any]:
    values = sum(whole for _, whole in counts.values())
    outliers = sum(part for part, _ in counts.values())
    bits = {str(site): (site.bits, outlier_bits or 2 * site.bits) for site in tokens}
    spent = sum(bits[label][1] * part + bits[label][0] * (whole - part) for label, (part, whole) in counts.items())
    return {
        "outlier_share": round(outliers / values, 6) if values else 0.0,
        "mean_bits": round(spent / values, 4) if values else None,
        "token_sites": len(tokens),
        "outlier_shares": {label: round(part / whole, 6) for label, (part, whole) in counts.items()},
    }


def _of_tokens(model: VisionModel, graph: Trace, sites: Sites, images: Tensor) -> list[ActivationSite]:
    """Sites that hold (n, tokens, channels) of the images."""
    few = images[:2]
    shapes: dict[Point, tuple[int, ...]] = {}

    def note(point: Point) -> Callable[[Tensor], None]:
        return lambda x: shapes.update({point: tuple(x.shape)})

    watch(model, few, {site.point: note(site.point) for site in sites.activations}, len(few))
    return [
        site
        for site in sites.activations
        if len(shapes.get(site.point, ())) == 3
        and shapes[site.point][0] == len(few)
        and graph.by_key[site.op].batched
        and (site.slot == OUTPUT or not graph.by_key[site.op].operands[site.slot].is_parameter)
    ]
