"""PTQ4ViT and BasePTQ: the steps of all quantizers, searched operation by operation with float inputs (METHODS: 5).

Every operation is searched as if the rest of the network were in float, whatever was chosen elsewhere (the reference
code's `sequential=False`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.layers import LAYERS, output_axis
from methods.core.graph.sites import Point, Sites, find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.layer_search.capture import Capture, Gradients, Target, capture
from methods.core.layer_search.grids import (
    GeluGrid,
    Grid,
    SoftmaxGrid,
    SymmetricGrid,
    extremes,
    linear_factors,
)
from methods.core.layer_search.metrics import (
    METRICS,
    Layout,
    by_channels,
    by_features,
    by_heads,
    by_images,
    by_maps,
    by_rows,
)
from methods.core.layer_search.operations import Convolution, Itself, Linear, Operation, Product
from methods.core.layer_search.options import SearchOptions
from methods.core.layer_search.plan import Activation, Unit, plan
from methods.core.layer_search.search import Factor, Part, Problem, cut, search
from methods.core.numerics.granularity import PerChannel, PerHead
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized

HEADS = 1  # axis of (n, heads, tokens, features)
_ROUNDING = 1e-5  # that a softmax's sum may be off by


class StepSearch:
    """The calibrator."""

    def __init__(self, options: SearchOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """The float network's own class is known for classifiers only."""
        if self.options.metric == "hessian" and self.options.gradient == "argmax" and model.task != "classification":
            return "gradient=argmax needs a classifier's output."
        return None

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Search every site of `scheme` on `images`."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        guided = o.metric == "hessian"
        gradients = Gradients(o.gradient, model, sites, images, o.batch) if guided else None
        units = {Target(unit.point, unit.product): unit for unit in plan(graph, sites)}
        run = _Run(o, graph, sites)
        for done, (target, held) in enumerate(capture(model, images, list(units), gradients, o.batch)):
            ctx.progress("calibrate", done / len(units))
            run.search(units[target], held)
        ctx.count(candidates=run.computed)
        if guided:
            ctx.diagnostics("ptq4vit", {"operations": len(units), "without_gradient": run.unguided})
        return Quantized(model.net, sites, run.weights, run.activations)


class _Run:
    """Quantizers found so far, by parameter name and by point.

    Args:
        options: the calibrator's.
        graph: the network's trace.
        sites: what is quantized.
    """

    def __init__(self, options: SearchOptions, graph: Trace, sites: Sites) -> None:
        self.weights: dict[str, Uniform] = {}
        self.activations: dict[Point, Quantizer] = {}
        self.computed = 0
        self.unguided = 0
        self._o, self._graph = options, graph
        self._widths: dict[Point, int] = {site.point: site.bits for site in sites.activations}
        self._weight_widths = {site.parameter: site.bits for site in sites.weights}
        self._factors = linear_factors(options.alpha, options.beta, options.candidates)

    def search(self, unit: Unit, held: Capture) -> None:
        """Choose the quantizers of one unit's factors."""
        operation, constants = _operation(unit, held)
        parts = self._parts(unit, held, operation, constants)
        heads = self._heads(unit, parts)
        factors_of = [
            self._activation(activation, [part.factors[i] for part in parts], heads)
            for i, activation in enumerate(unit.activations)
        ]
        groups = 1
        if constants:
            groups = self._weight_groups(unit, constants[0])
            factors_of.append(self._weight(unit, constants[0], groups))
        problem = Problem(operation, parts, METRICS[self._o.metric], self._layout(unit, heads, groups))
        # Weights come before a layer's input, and the left operand of a matrix product before the right.
        order = (1, 0) if constants else tuple(range(len(factors_of)))
        self.computed += search(problem, factors_of, order, self._o.rounds)
        self._keep(unit, factors_of)

    def _parts(self, unit: Unit, held: Capture, operation: Operation, constants: tuple[Tensor, ...]) -> list[Part]:
        inputs, gradients = held.inputs, held.gradients
        if unit.product and unit.point[0].kind == "linear":
            # Where a layer's input has no tokens (the classifier), the images of the batch stand for them.
            inputs = [(x[None],) if x.dim() == 2 else (x,) for (x,) in inputs]
            gradients = [g[None] if g.dim() == 2 else g for g in gradients]
        guided = any(bool(g.any()) for g in gradients)
        # Nothing of the loss passes here, or its gradient vanished: then all values count alike.
        self.unguided += bool(gradients) and not guided
        return [
            part
            for i, factors in enumerate(inputs)
            for part in cut((*factors, *constants), gradients[i] if guided else None, operation, len(factors))
        ]

    def _keep(self, unit: Unit, factors: list[Factor]) -> None:
        for activation, factor in zip(unit.activations, factors, strict=False):
            if factor.grid is not None and activation.point is not None and factor.quantizer is not None:
                self.activations[activation.point] = factor.quantizer
        if unit.weight is not None:
            quantizer = factors[-1].quantizer
            assert isinstance(quantizer, Uniform), "weights have symmetric grids"
            self.weights[unit.weight] = quantizer

    def _activation(self, activation: Activation, tensors: list[Tensor], heads: int) -> Factor:
        if activation.point is None:
            return Factor()
        if not activation.searched:
            return Factor(quantizer=self.activations.get(activation.point))
        bits = self._widths[activation.point]
        twin = self._twin(activation, tensors, bits)
        if twin is not None:
            summed = self._o.twin == "reference" and isinstance(twin, SoftmaxGrid)
            return Factor(twin, alone=summed)
        if heads > 1:
            return Factor(SymmetricGrid(bits, extremes(tensors, PerChannel(HEADS)), self._factors, PerChannel(HEADS)))
        return Factor(SymmetricGrid(bits, extremes(tensors), self._factors))

    def _twin(self, activation: Activation, tensors: list[Tensor], bits: int) -> Grid | None:
        """Candidates of a twin quantizer where softmax, or an activation function with a known least value, made the
        tensor.
        """
        if self._o.twin == "none" or activation.source is None or activation.point is None:
            return None
        lowest, highest = (torch.stack(ends).float() for ends in zip(*map(torch.aminmax, tensors), strict=True))
        low, high = float(lowest.min()), float(highest.max())
        if activation.source.kind == "softmax" and low >= 0 and high <= 1 + _ROUNDING:
            return SoftmaxGrid(bits, summed=self._o.twin == "reference")
        function = self._graph.function(*activation.point)
        if function is None or not function.depth:
            return None
        factors = None if self._o.gelu_step == "aligned" else self._factors
        return GeluGrid(bits, highest.max(), function.depth, factors)

    def _weight_groups(self, unit: Unit, weight: Tensor) -> int:
        kind = unit.point[0].kind
        if kind != "linear" or self._o.weights == "channel":
            return weight.shape[output_axis(kind)]
        return unit.pieces

    def _weight(self, unit: Unit, weight: Tensor, groups: int) -> Factor:
        if unit.weight is None:
            return Factor()
        bits, axis = self._weight_widths[unit.weight], output_axis(unit.point[0].kind)
        pieces = PerHead(axis, groups)
        return Factor(SymmetricGrid(bits, extremes([weight], pieces), self._factors, pieces))

    def _heads(self, unit: Unit, parts: list[Part]) -> int:
        """Heads of a matrix product whose operands and result have them as their second axis, else 1."""
        shapes = {x.shape[HEADS] for part in parts for x in (*part.factors, part.output) if x.dim() == 4}
        flat = any(x.dim() != 4 for part in parts for x in (*part.factors, part.output))
        return shapes.pop() if unit.point[0].kind == "matmul" and unit.product and not flat and len(shapes) == 1 else 1

    def _layout(self, unit: Unit, heads: int, groups: int) -> Layout:
        kind = unit.point[0].kind
        if not unit.product:
            return by_images
        if kind == "matmul":
            return by_heads if heads > 1 else by_rows
        if kind == "linear":
            return by_channels if self._o.weights == "channel" else by_features(groups)
        return by_maps(groups)


def _operation(unit: Unit, held: Capture) -> tuple[Operation, tuple[Tensor, ...]]:
    """The unit's operation, and its weight if it has one."""
    kind = unit.point[0].kind
    if not unit.product:
        return Itself(), ()
    if kind == "matmul":
        return Product(), ()
    weight, *rest = held.constants
    if kind == "linear":
        return Linear(rest[0] if rest else held.named.get("bias")), (weight,)
    return Convolution(tuple(rest), held.named, LAYERS[kind]), (weight,)
