"""AdaLog: every layer's quantizers by the error of its output, all inputs being those of the float model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.adalog.errors import InputErrors, ProductErrors, WeightErrors, total
from methods.calibrators.adalog.factors import Factor, LogFactor, UniformFactor
from methods.calibrators.adalog.info import AdalogOptions
from methods.calibrators.adalog.patches import Rows, joined, matrix, rows
from methods.calibrators.adalog.quantizer import AdaLog
from methods.calibrators.adalog.search import Score, combine
from methods.core.calibrate import SiteNotReachedError
from methods.core.graph.flow import Op
from methods.core.graph.intercept import Interceptor, OpKey
from methods.core.graph.layers import LAYERS, output_axis
from methods.core.graph.sites import ActivationSite, Point, comes_from, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.granularity import PER_TENSOR, PerChannel
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized
from methods.core.reparameterization.calibrator import merge
from methods.core.reparameterization.fold import Pair, find_pairs, fold, ratio_and_shift

_Run = tuple[Any, ...]  # what an operation was given: a layer input and weight, a product its factors
_OfRuns = Callable[[Sequence[_Run]], None]

_LAYER_NORM = (0.999, 0.9999, 0.99999)  # percentiles of LayerNorm's channels, as in RepQ-ViT


class AdaLogSearch:
    """The calibrator."""

    def __init__(self, options: AdalogOptions) -> None:
        self.options = options

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Search while the float model runs once over all images; then move LayerNorm's scales into its layers."""
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        search = _Search(self.options, graph, find_pairs(model.net, graph, images[:1]), ctx)
        search.sites = {site.point: site for site in sites.activations}
        search.weight_bits = {site.parameter: site.bits for site in sites.weights}
        make = {**dict.fromkeys(LAYERS, search.conv), "linear": search.linear, "matmul": search.matmul}
        # What has no site stays in float, as what lies outside the part of the network that is quantized.
        searched = {op for op, _ in search.sites}
        instead = {op.key: make[op.key.kind](op) for op in graph.ops if op.key.kind in make and op.key in searched}
        with Interceptor(model.net, {}, instead=instead):
            model.net(images)
        search.finish()
        lost = [site for site in sites.activations if site.point not in search.activations]
        if lost:
            raise SiteNotReachedError(f"{len(lost)} activation sites were not reached, the first is {lost[0]}")
        net = copy.deepcopy(model.net)
        for pair, (before, after) in search.merged.items():
            fold(net, pair, before, after)
        return Quantized(net, sites, search.weights, search.activations)


class _Search:
    """What is found while the float model runs. Its functions compute a layer as it is, and search it: at once if it
    runs once, else in `finish`, with all runs together.
    """

    sites: dict[Point, ActivationSite]
    weight_bits: dict[str, int]

    def __init__(self, options: AdalogOptions, graph: Trace, pairs: list[Pair], ctx: RunContext) -> None:
        self.options, self._graph, self._ctx = options, graph, ctx
        self._pairs = {key: pair for pair in pairs for key in pair.linears}
        self._searched: set[OpKey] = set()
        self._kept: dict[OpKey, tuple[_OfRuns, list[_Run]]] = {}
        self.merged: dict[Pair, tuple[Uniform, Uniform]] = {}
        self.weights: dict[str, Uniform] = {}
        self.activations: dict[Point, Uniform | AdaLog] = {}

    def linear(self, op: Op) -> Callable[..., Tensor]:
        """What to run instead of a linear layer."""

        def search(runs: Sequence[_Run]) -> None:
            moved = [self._moved(op.key, *run) for run in runs]
            inputs = [x for x, _ in moved]
            self._layer(op, self._factor(op, 0, inputs), [Rows(x.flatten(0, -2)) for x in inputs], moved[0][1])

        def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            self._ran(op, search, x, weight)
            return functional.linear(x, weight, bias)

        return run

    def conv(self, op: Op) -> Callable[..., Tensor]:
        """What to run instead of a convolution, transposed or not: it is searched as a linear layer on its patches."""

        def search(runs: Sequence[_Run]) -> None:
            factor = self._factor(op, 0, [x for x, *_ in runs])
            found = [patches(self._drawn(self.options.tokens, x)[0]) for x, _, patches in runs]
            self._layer(op, factor, found, runs[0][1])

        def run(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._ran(op, search, x, weight, lambda x: rows(op.key.kind, x, weight, *args, **kwargs))
            return LAYERS[op.key.kind](x, weight, *args, **kwargs)

        return run

    def matmul(self, op: Op) -> Callable[..., Tensor]:
        """What to run instead of a product of activations."""

        def run(a: Tensor, b: Tensor) -> Tensor:
            self._ran(op, partial(self._product, op), a, b)
            return a @ b

        return run

    def finish(self) -> None:
        """Search what runs several times."""
        while self._kept:
            key = next(iter(self._kept))
            search, runs = self._kept.pop(key)
            self._start(key)
            search(runs)

    def _ran(self, op: Op, search: _OfRuns, *run: Any) -> None:
        if len(self._graph.runs[op.key]) > 1:
            self._kept.setdefault(op.key, (search, []))[1].append(tuple(map(_copy, run)))
        elif op.key not in self._searched:
            self._start(op.key)
            search([run])

    def _start(self, key: OpKey) -> None:
        self._searched.add(key)
        self._ctx.progress("search", len(self._searched) / len(self._graph.ops))

    def _moved(self, key: OpKey, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight of a layer behind a LayerNorm as they are after reparameterisation."""
        pair = self._pairs.get(key)
        if pair is None:
            return x, weight
        if pair not in self.merged:
            bits = self.sites[key, 0].bits
            before = percentile_quantizer(x, bits, _LAYER_NORM, granularity=PerChannel(x.dim() - 1))
            after = merge(before)
            assert isinstance(after, Uniform)
            self.merged[pair] = before, after
        ratio, shift = ratio_and_shift(*self.merged[pair])
        return ((x + shift) / ratio).to(x.dtype), (weight * ratio).to(weight.dtype)

    def _factor(self, op: Op, slot: int, runs: Sequence[Tensor]) -> Factor:
        """How an operand is quantized, with starting parameters."""
        site = self.sites[op.key, slot]
        by_head = self.options.per_head and op.key.kind == "matmul" and _have_heads(runs)
        x = _joined(runs, by_head=by_head)
        codes = 2**site.bits - (self.options.zero_code == "reserved")
        if comes_from(site, self._graph, "softmax"):
            return LogFactor.softmax(x, site.bits, codes)
        # A convolution's input keeps 8 bits at any precision, of which logarithms would make poor use.
        function = self._graph.function(*site.point) if op.key.kind == "linear" else None
        if function is not None:
            return LogFactor.activation(x, site.bits, codes, function.depth, self.options.keep_log)
        factor = UniformFactor.of(x, site.bits, PerChannel(1) if by_head else PER_TENSOR, self.options.keep)
        if op.key in self._pairs:
            after = self.merged[self._pairs[op.key]][1]
            factor.parameters = after.scale.reshape(1), after.zero_point.reshape(1).to(x.dtype)
        return factor

    def _layer(self, op: Op, factor: Factor, runs: Sequence[Rows | None], weight: Tensor) -> None:
        """Search a layer with the rows of its inputs, or keep the starting parameters if there are none."""
        inputs = joined(runs)
        flat = matrix(op.key.kind, weight)
        name = op.weight
        known = self.weights.get(name) if name is not None else None  # shared with a layer before
        own = None
        if name is not None and known is None:
            own = UniformFactor.of(flat, self.weight_bits[name], PerChannel(0), self.options.keep)

        def rounded() -> Tensor:
            if own is not None:
                return own.quantizer()(flat)
            return flat if known is None else matrix(op.key.kind, known(weight))

        if inputs is not None:
            x, *present = self._drawn(self.options.tokens, *(t for t in inputs if t is not None))
            for _ in range(self.options.rounds):
                if own is not None:
                    self._improve(own, WeightErrors(own, flat, x, factor.quantizer()(x), *present))
                self._improve(factor, InputErrors(factor, x, flat, rounded(), *present))
        self.activations[op.key, 0] = factor.quantizer()
        if own is not None and name is not None:
            found = own.quantizer()
            channels = PerChannel(output_axis(op.key.kind))
            self.weights[name] = Uniform(found.scale, found.zero_point, found.qmin, found.qmax, channels)

    def _product(self, op: Op, runs: Sequence[_Run]) -> None:
        """Search both operands of a product, unless their shapes are broadcast."""
        first, second = (self._factor(op, slot, [run[slot] for run in runs]) for slot in (0, 1))
        if all(a.shape[:-2] == b.shape[:-2] and a.dim() > 2 for a, b in runs):
            parts = self._parts(runs)
            for _ in range(self.options.rounds):
                right = second.quantizer()
                self._improve(first, total([ProductErrors(first, a, right(b), y, left=True) for a, b, y in parts]))
                left = first.quantizer()
                self._improve(second, total([ProductErrors(second, b, left(a), y, left=False) for a, b, y in parts]))
        for slot, factor in enumerate((first, second)):
            self.activations[op.key, slot] = factor.quantizer()

    def _parts(self, runs: Sequence[_Run]) -> list[tuple[Tensor, ...]]:
        """Operands and result of about as many rows as are looked at, of each run its share."""
        tokens, every = self.options.tokens, sum(len(a) * a.shape[-2] for a, _ in runs)
        counts = [None if tokens is None else max(1, tokens * len(a) // every) for a, _ in runs]
        return [self._drawn(count, a, b, a @ b) for count, (a, b) in zip(counts, runs, strict=True)]

    def _drawn(self, count: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`count` items of all `tensors` (n, ...), the same ones; all for None.

        Drawn at random: evenly spaced ones might all stand at one place of an image or window.
        """
        length = len(tensors[0])
        if count is None or count >= length:
            return tensors
        order = torch.randperm(length, generator=self._ctx.generator("adalog-rows"))[:count].sort().values
        return tuple(t[order.to(t.device)] for t in tensors)

    def _improve(self, factor: Factor, score: Score) -> None:
        steps = self.options.steps if factor.keep else 0
        factor.parameters = combine(
            score, *factor.axes, factor.parameters, keep=factor.keep, steps=steps, ring=factor.ring
        )


def _copy(given: Any) -> Any:
    """What stays as it is when the network writes into its activations later."""
    return given.clone() if isinstance(given, Tensor) and not isinstance(given, nn.Parameter) else given


def _have_heads(runs: Sequence[Tensor]) -> bool:
    """Whether axis 1 is that of heads, as many in every run."""
    return all(x.dim() == 4 for x in runs) and len({x.shape[1] for x in runs}) == 1


def _joined(runs: Sequence[Tensor], *, by_head: bool) -> Tensor:
    """The values of all runs as one tensor; those of heads, which have axis 1, stay apart."""
    if len(runs) == 1:
        return runs[0]
    if by_head:
        return torch.cat([x.movedim(1, 0).flatten(1) for x in runs], 1)[None]
    return torch.cat([x.flatten() for x in runs])
