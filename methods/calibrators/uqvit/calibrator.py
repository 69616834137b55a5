"""UQ-ViT (AAAI 2026): RepQ-ViT's pass with other quantizers, then NormQuant's shares, layer by layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.uqvit.demax import DeMax
from methods.calibrators.uqvit.info import UqvitOptions
from methods.calibrators.uqvit.search import Alone, BehindNorm, Search
from methods.core.graph.intercept import OUTPUT
from methods.core.graph.plain import plain_layers
from methods.core.graph.segments import cut
from methods.core.graph.sites import ActivationSite, Point, Sites, find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized
from methods.core.reparameterization.calibrator import RepQ, merge, pair_points
from methods.core.reparameterization.fold import find_pairs, fold
from methods.core.reparameterization.options import RepqOptions


class UqVit(RepQ):
    """The calibrator. Nothing is trained: each layer takes the best of a few shares."""

    def __init__(self, options: UqvitOptions) -> None:
        super().__init__(RepqOptions(percentiles=options.percentiles))
        self._own = options

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Quantizers from one pass over `images` (n, c, h, w) with rounded weights, then the search by blocks."""
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        channels = {pair: pair_points(pair, sites) for pair in find_pairs(model.net, graph, images[:1])}
        rounded = Quantized(model.net, sites, self._weights(model.net, sites.weights), None).net
        activations = self._first_pass(rounded, images, sites, graph, channels)

        net = copy.deepcopy(model.net)
        layers: list[BehindNorm | Alone] = []
        for pair, points in channels.items():
            before = activations[points[0]]
            assert isinstance(before, Uniform)
            after = merge(before)
            fold(net, pair, before, after)
            activations.update(dict.fromkeys(points, after))
            layers.append(BehindNorm(model.net, pair, before, points, self._own.norm_alphas))
        if self._own.alphas:
            known = {name for layer in layers for name in layer.names}
            layers += [
                Alone(model.net, name, point, self._own.alphas)
                for name, point in _others(model.net, graph, sites).items()
                if name not in known
            ]
        quantized = Quantized(net, sites, self._weights(net, sites.weights), activations)
        search = Search(model.net, net, quantized, find_blocks(graph), images, percentiles=self._own.percentiles)
        segments = cut(graph, find_blocks(graph), sites.weights)
        for number, segment in enumerate(segments):
            ctx.progress(f"balance {number + 1}/{len(segments)}", number / len(segments))
            search.run(segment, layers)
        ctx.count(candidates=search.computed, reparameterized=len(channels))
        ctx.diagnostics("uqvit", {"layers": list(search.chosen), "shares": list(search.chosen.values())})
        return quantized

    def _softmax(self, site: ActivationSite, x: Tensor) -> Quantizer:
        if self._own.softmax == "demax":
            return DeMax(site.bits)
        return percentile_quantizer(x, site.bits, self._own.percentiles, widen=True)


def _others(net: nn.Module, graph: Trace, sites: Sites) -> dict[str, Point]:
    """Weights of plain linear layers within blocks, each with the point at which its input alone is quantized."""
    plain = plain_layers(net, graph, nn.Linear)
    points = {site.point for site in sites.activations}
    blocks = tuple(f"{block.path}." for block in find_blocks(graph))
    found: dict[str, Point] = {}
    for op in graph.of_kind("linear"):
        if op.key not in plain or op.weight is None or not op.key.module.startswith(blocks):
            continue
        if not graph.inside(op.key):
            continue
        (first, *others) = op.operands[0].ops or (None,)
        if (op.key, 0) in points:
            found[op.weight] = (op.key, 0)
        elif (
            first is not None
            and not others
            # Any other result may lie in other axes than the layer takes it in.
            and graph.by_key[first].role == "activation"
            and (first, OUTPUT) in points
            and [consumer.key for consumer in graph.consumers[first]] == [op.key]
        ):
            found[op.weight] = (first, OUTPUT)
    return found
