"""MPTQ-ViT as a calibrator: smoothed channels, quantizers for every width that may be needed, then the widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.images import ImageSet
from harness.api.spec import MAX_BITS, BitSpec
from methods.calibrators.mptq.greedy import Greedy
from methods.calibrators.mptq.info import MptqOptions
from methods.calibrators.mptq.regions import Choice, behind_gelu, behind_softmax
from methods.calibrators.mptq.smoothing import smoothed
from methods.calibrators.mptq.working import Working
from methods.core.budget import Budget
from methods.core.calibrate import observe, watch
from methods.core.graph.sites import ActivationSite, Point, Sites, comes_from, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.observers import OBSERVERS
from methods.core.numerics.quantizers import Quantizer, Uniform


class Mptq:
    """The calibrator. It takes no gradient: widths are chosen by the model's distance from the float output."""

    def __init__(self, options: MptqOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """A budget below the narrowest width cannot be met."""
        least = self.options.widths[0]
        if spec.mixed and spec.weight < least:
            return f"{spec} cannot be met with weights of {least} bits or more; allow narrower ones (option widths)"
        return None

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Ranges on `images` (n, c, h, w) in float passes; in mixed precision the greedy search on the same images."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        reference = ImageSet.whole(images).through(model.net)
        known = replace(model, net=smoothed(model, graph, images, o.alpha, o.batch)) if o.smooth else model
        working = Working(
            known.net,
            sites,
            spec,
            self._quantizers(known, graph, sites, images, spec),
            margin=o.activation_margin,
            symmetric=o.weights == "symmetric",
        )
        if spec.mixed:
            with ctx.stage("search"):
                budget = Budget(working.sizes, spec.weight)
                self._choose(budget, working, lambda: model.output_distance(working.quantized(images), reference), ctx)
        return working.quantized

    def _quantizers(
        self, model: VisionModel, graph: Trace, sites: Sites, images: Tensor, spec: BitSpec
    ) -> Callable[[ActivationSite], Quantizer]:
        """What gives each site its quantizer at its width, from passes of the smoothed float `model`."""
        o = self.options
        observers = observe(model, images, sites, OBSERVERS[o.ranges], o.batch)
        choices = self._regions(model, graph, sites, images, spec)

        def quantizer(site: ActivationSite) -> Quantizer:
            choice = choices.get(site.point)
            if choice is not None:
                return choice.best(site.bits)
            return Uniform.asymmetric(*observers[site.point].range(site.bits), site.bits)

        return quantizer

    def _regions(
        self, model: VisionModel, graph: Trace, sites: Sites, images: Tensor, spec: BitSpec
    ) -> Mapping[Point, Choice]:
        """Two regions for the sites that GELU (or another function with a known least value) and softmax make."""
        o = self.options
        free = spec.mixed and spec.activation is None
        found: dict[Point, Choice] = {}
        widths = {min(MAX_BITS, bits + o.activation_margin) for bits in o.widths}
        for site in sites.activations:
            own = widths if free and not site.fixed else {site.bits}
            function = graph.function(*site.point) if o.regions != "none" else None
            if function is not None and function.depth:
                found[site.point] = behind_gelu(own, images.new_tensor(function.depth))
            elif o.regions == "both" and comes_from(site, graph, "softmax"):
                found[site.point] = behind_softmax(own)
        watch(model.net, images, {point: choice.update for point, choice in found.items()}, o.batch)
        return found

    def _choose(self, budget: Budget, working: Working, distance: Callable[[], Tensor], ctx: RunContext) -> None:
        o = self.options

        def loss(bits: Mapping[str, int]) -> float:
            working.set(bits)
            return float(distance())

        greedy = Greedy(budget, o.widths, loss, refresh_all=o.refresh == "all", evaluations=o.evaluations)
        working.set(greedy.run())
        ctx.count(candidates=greedy.measured)
        ctx.diagnostics(
            "greedy",
            {
                "layers": [step.name for step in greedy.taken],
                "bits": [step.bits for step in greedy.taken],
                "rises": [round(step.rise, 6) for step in greedy.taken],
            },
        )
