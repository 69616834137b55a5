"""NoisyQuant (CVPR 2023) as a calibrator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.images import ImageSet
from harness.api.spec import BitSpec
from methods.calibrators.noisyquant.info import NoisyquantOptions
from methods.calibrators.noisyquant.noisy import Denoise, Noisy, NoisySearch, denoising_bias, unit_noise
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, Transform
from methods.core.graph.sites import ActivationSite, Point, find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import MinMax
from methods.core.numerics.quantizers import Quantizer
from methods.core.quantized import Quantized


class NoisyQuant:
    """Min-max quantizers, and before those of linear layers a noise whose range is searched layer by layer."""

    def __init__(self, options: NoisyquantOptions) -> None:
        self.options = options

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Quantizers and noises from two float passes over `images` (n, c, h, w)."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        observers = observe(model, images, sites, MinMax, o.batch)
        weights = weight_quantizers(model, sites, symmetric=o.weights == "symmetric")
        quantizers: dict[Point, Quantizer] = dict(activation_quantizers(sites, observers))
        parameters = dict(model.net.named_parameters())
        layers = {
            site.point: name
            for site in sites.activations
            if site.op.kind == "linear" and (name := graph.by_key[site.op].weight) is not None
        }
        linear = [site for site in sites.activations if site.point in layers]
        rows = _rows(model, images, linear, count=o.rows, batch=o.batch, generator=ctx.generator("noisyquant-rows"))
        generator = ctx.generator("noisy-bias")
        denoise: dict[OpKey, Denoise] = {}
        for done, site in enumerate(linear):
            name = layers[site.point]
            weight = parameters[name].detach()
            search = NoisySearch(rows.pop(site.point), weight, weights[name](weight), site.bits)
            noisy = self._noisy(search, *observers[site.point].range(site.bits), generator)
            quantizers[site.point] = noisy
            denoise[site.op] = Denoise(denoising_bias(search.rounded, noisy.noise))
            ctx.progress("noise", (done + 1) / len(linear))
        return NoisyQuantized(model.net, sites, weights, quantizers, denoise=denoise)

    def _noisy(self, search: NoisySearch, low: Tensor, high: Tensor, generator: torch.Generator) -> Noisy:
        """Clipping, then the noise's range, then its offset, each the best with what was chosen before."""
        o = self.options
        quantizer = search.clip(low, high, o.clips)
        step = quantizer.scale
        unit = unit_noise(o.noise, search.x.shape[-1], generator).to(search.x)
        # The first candidate is no noise at all.
        ranges = torch.arange(o.ranges, device=step.device) * (o.widest / o.ranges) * step
        noise = search.best_noise(quantizer, ranges[:, None] * unit)
        if o.means:
            offsets = torch.arange(o.means, device=step.device) / o.means * step
            # A whole step moves codes and nothing else, so half a step to either side is all there is.
            offsets = torch.where(offsets < step / 2, offsets, offsets - step)
            noise = search.best_noise(quantizer, noise + offsets[:, None])
        return Noisy(quantizer, noise)


class NoisyQuantized(Quantized):
    """A quantized network whose linear layers' outputs get a denoising bias."""

    def __init__(self, *args: Any, denoise: Mapping[OpKey, Denoise]) -> None:
        super().__init__(*args)
        self.denoise = dict(denoise)

    def interceptor(self, **extra: Any) -> Interceptor:
        """The mode under which the network computes with noisy quantizers and without the noise's effect."""
        interceptor = super().interceptor(**extra)
        interceptor.transforms |= {(op, OUTPUT): transform for op, transform in self.denoise.items()}
        return interceptor


def _rows(
    model: VisionModel,
    images: Tensor,
    sites: list[ActivationSite],
    *,
    count: int,
    batch: int,
    generator: torch.Generator,
) -> dict[Point, Tensor]:
    """Up to `count` tokens (rows, channels) of every site's float tensor, as many from each batch."""
    parts = ImageSet.whole(images).batches(batch)
    share = -(-count // len(parts))
    kept: dict[Point, list[Tensor]] = {site.point: [] for site in sites}

    def keep(point: Point) -> Transform:
        def transform(x: Tensor) -> Tensor:
            tokens = x.flatten(0, -2)
            chosen = torch.randperm(len(tokens), generator=generator)[:share].to(x.device)
            kept[point].append(tokens[chosen])
            return x

        return transform

    with Interceptor(model.net, {point: keep(point) for point in kept}):
        for part in parts:
            part.through(model.net)
    return {point: torch.cat(found)[:count] for point, found in kept.items()}
