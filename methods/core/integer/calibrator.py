"""FQ-ViT (IJCAI 2022) as a calibrator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe, watch, weight_quantizers
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey
from methods.core.graph.sites import ActivationSite, Point, Sites, comes_from, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.integer.grids import Arrival, arrivals
from methods.core.integer.operations import IntegerLayerNorm, LogIntSoftmax
from methods.core.integer.options import FqvitOptions
from methods.core.integer.quantizers import FactorSearch, Log2
from methods.core.numerics.observers import Ema, MinMax, Observer, Omse
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized


class FqVit:
    """Ranges as the baselines', but LayerNorm inputs have a step per channel and softmax outputs are powers of two."""

    def __init__(self, options: FqvitOptions) -> None:
        self.options = options

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Quantizers from float passes over `images` (n, c, h, w): one for ranges, in scheme `full` one more for
        power-of-two factors, and another for the extremes that they start from if ranges are something else.
        """
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec, softmax_bits=None if o.softmax == "float" else o.softmax_bits)
        sites = _without_other_softmaxes(sites, graph)
        logs = _softmax_results(sites, graph) if o.softmax in ("log-int", "log2") else []
        quantizers: dict[Point, Quantizer] = {site.point: Log2(self._powers(site.bits)) for site in logs}
        ranged = _only(sites, [site for site in sites.activations if site.point not in quantizers])
        observers = observe(model, images, ranged, self._observer(), o.batch)
        quantizers |= activation_quantizers(ranged, observers)
        instead: dict[OpKey, Callable[..., Tensor]] = {}
        if scheme == "full":  # scheme matmul leaves the residual stream and attention's scores in float
            stored = {site.op for site in ranged.activations if site.slot == OUTPUT}
            found = arrivals(model, graph, stored)
            quantizers |= self._factors(model, images, ranged, found, observers)
            instead = self._integer_arithmetic(found, quantizers)
        weights = weight_quantizers(model, sites, symmetric=o.weights == "symmetric")
        return IntegerQuantized(model.net, sites, weights, quantizers, instead=instead)

    def _powers(self, bits: int) -> int:
        return (1 << bits) - (self.options.log_codes == "2^b")

    def _observer(self) -> Callable[[], Observer]:
        o = self.options
        makers: dict[str, Callable[[], Observer]] = {
            "minmax": MinMax,
            "ema": partial(Ema, o.momentum),
            "percentile": partial(Ema, o.momentum, o.quantile),
            "omse": Omse,
        }
        return makers[o.observer]

    def _factors(
        self,
        model: VisionModel,
        images: Tensor,
        sites: Sites,
        found: Mapping[OpKey, Arrival],
        observers: Mapping[Point, Observer],
    ) -> dict[Point, Quantizer]:
        """Quantizers with power-of-two factors for the results that some LayerNorm takes as they are."""
        axes = {a.source: a.axis for a in found.values() if a.axis is not None}
        chosen = [site for site in sites.activations if site.slot == OUTPUT and site.op in axes]
        if not self.options.ptf or not chosen:
            return {}
        extremes = observers
        if self.options.observer != "minmax":
            extremes = observe(model, images, _only(sites, chosen), MinMax, self.options.batch)
        searches = {
            s.point: FactorSearch(*extremes[s.point].range(s.bits), s.bits, self.options.ptf, axes[s.op])
            for s in chosen
        }
        watch(model.net, images, {point: search.update for point, search in searches.items()}, self.options.batch)
        return {point: search.best() for point, search in searches.items()}

    def _integer_arithmetic(
        self, found: Mapping[OpKey, Arrival], quantizers: Mapping[Point, Quantizer]
    ) -> dict[OpKey, Callable[..., Tensor]]:
        """What stands in for each LayerNorm and softmax whose input's grid is known."""
        instead: dict[OpKey, Callable[..., Tensor]] = {}
        for key, arrival in found.items():
            grid, result = quantizers[arrival.source, OUTPUT], quantizers.get((key, OUTPUT))
            if not isinstance(grid, Uniform):
                continue
            step = grid.scale * arrival.factor
            if key.kind == "softmax":
                if self.options.softmax == "log-int" and isinstance(result, Log2):
                    instead[key] = LogIntSoftmax(float(step), result.powers, self.options.exp_step)
            elif self.options.layer_norm == "integer" and arrival.channels is not None and isinstance(result, Uniform):
                steps = step[arrival.channels] if step.dim() else step.expand(len(arrival.channels))
                if result.scale.numel() in (1, len(steps)):
                    instead[key] = IntegerLayerNorm(steps, result.scale)
        return instead


class IntegerQuantized(Quantized):
    """A quantized network in which some operations are computed by other functions, `instead`."""

    def __init__(self, *args: Any, instead: Mapping[OpKey, Callable[..., Tensor]]) -> None:
        super().__init__(*args)
        self.instead = dict(instead)

    def interceptor(self, **extra: Any) -> Interceptor:
        """The mode under which the network computes with quantized activations and integer arithmetic."""
        return super().interceptor(**{"instead": self.instead, **extra})


def _softmax_results(sites: Sites, graph: Trace) -> list[ActivationSite]:
    """Sites that hold nothing but softmax outputs: at the softmax (scheme full) or at its consumer (matmul)."""
    return [site for site in sites.activations if comes_from(site, graph, "softmax")]


def _without_other_softmaxes(sites: Sites, graph: Trace) -> Sites:
    """Drop softmaxes that weigh no values: class probabilities are results, not part of attention."""
    weighing = {
        op.key for op in graph.of_kind("softmax") if any(c.key.kind == "matmul" for c in graph.consumers[op.key])
    }
    return _only(sites, [site for site in sites.activations if site.op.kind != "softmax" or site.op in weighing])


def _only(sites: Sites, activations: list[ActivationSite]) -> Sites:
    return replace(sites, activations=tuple(activations))
