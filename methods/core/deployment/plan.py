"""Which products of a quantized network can be products of integers, and the network that computes them so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.contracts import DeployedProduct, Deployment, VisionModel
from harness.api.errors import UsageError
from methods.core.deployment.codes import Indexed, Step, StoredCodes, grid_of, stored_codes, uniform_step
from methods.core.deployment.module import Deployed, key_of
from methods.core.graph.flow import TRACED_IMAGES, Op
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, Transform, tap_transforms
from methods.core.graph.operations import MULTIPLYING
from methods.core.graph.sites import Point
from methods.core.graph.trace import Trace, trace_net
from methods.core.numerics.quantizers import Divided, Quantizer
from methods.core.quantized import Quantized


@dataclass(frozen=True)
class _Operand:
    """A factor of a product: its codes, or why it has none."""

    step: Step | Indexed | None
    why: str = ""


@torch.no_grad()
def deployed(quantized: Quantized, model: VisionModel) -> Deployment:
    """The quantized network with codes wherever its quantizers have an integer form.

    Args:
        quantized: what a method made.
        model: the float model that it was made from.

    Raises:
        UsageError: it computes with more than quantizers at sites, so that it would not be the same model.
    """
    kind = type(quantized)
    if kind.interceptor is not Quantized.interceptor or kind.__call__ is not Quantized.__call__:
        raise UsageError(
            f"its model is a {kind.__name__}, which replaces operations by integer code or noise of its own that "
            "ONNX has no operations for; export a method with uniform quantizers alone, such as minmax, omse or clamp"
        )
    if quantized.sites.formats:
        raise UsageError(
            f"its values are stored in blocks ({quantized.sites.formats[0]}), whose scales lie along the sums of "
            "products, and ONNX has no such products; export a precision of plain integers, such as W8A8"
        )
    if quantized.activations is None:
        raise UsageError("its activations are not quantized, so that no product can be one of integers")
    graph = trace_net(quantized.net, model.input_shape, model.part)
    scan = next(iter(graph.of_kind("scan")), None)
    if scan is not None:
        raise UsageError(
            f"its model has a selective scan ({scan.key}), for which ONNX has no operator; export a ViT or Swin"
        )
    return _Plan(quantized, graph, model).deployment()


class _Plan:
    def __init__(self, quantized: Quantized, graph: Trace, model: VisionModel) -> None:
        self._quantized = quantized
        self._graph = graph
        self._model = model
        assert quantized.activations is not None
        self._activations: dict[Point, Quantizer] = quantized.activations
        parameters = dict(quantized.net.named_parameters())
        self._weights: dict[str, StoredCodes] = {}
        for site in quantized.sites.weights:
            grid = grid_of(quantized.weights[site.parameter])
            found = None if grid is None else stored_codes(parameters[site.parameter], grid, site.axis)
            if found is not None:
                self._weights[site.parameter] = found
        self._ops = [op for op in graph.ops if graph.inside(op.key)]
        self._factors = _factors(quantized, graph, model)

    def deployment(self) -> Deployment:
        transforms = {point: _transform(point, quantizer) for point, quantizer in self._activations.items()}
        layers: dict[OpKey, str] = {}
        products, unpacked = [], set()
        for op in self._ops:
            if not op.macs:
                continue
            left = self._operand(op, 0)
            if op.weight is not None:
                right = _Operand(None, "its weight is on no grid of one step for each output channel")
                if op.weight in self._weights:
                    layers[op.key] = op.weight
                    right = _Operand(Step(1.0, 0, 0, 0))
            else:
                right = self._operand(op, 1)
            whole = left.step is not None and right.step is not None
            if whole:
                self._place(op, (left, right)[: 1 if op.weight is not None else 2], transforms)
            elif op.weight is not None:
                unpacked.add(op.weight)
            products.append(DeployedProduct(str(op.key), op.macs, whole, left.why or right.why))
        module = Deployed(self._quantized.net, self._model.part, self._weights, layers, transforms)
        stored = {f"stored.{key_of(name)}.codes": codes.bits for name, codes in self._weights.items()}
        return Deployment(
            module.eval(),
            tuple(products),
            stored,
            frozenset(f"stored.{key_of(name)}.codes" for name in unpacked if name in self._weights),
        )

    def _operand(self, op: Op, slot: int) -> _Operand:
        """The codes of an operand, of its own site or of the stored tensor that it is a view of."""
        point = (op.key, slot)
        own = self._activations.get(point)
        if own is not None:
            return self._checked(op, own, uniform_step(own))
        operand = op.operands[slot]
        if len(operand.ops) != 1 or operand.altered:
            return _Operand(None, "its input is in float")
        (source,) = operand.ops
        stored = self._activations.get((source, OUTPUT))
        if stored is None:
            return _Operand(None, f"its input is the result of {source}, which this scheme leaves in float")
        return self._checked(op, stored, self._scaled(uniform_step(stored), self._factors.get(point)))

    def _scaled(self, step: Step | Indexed | None, factor: float | None) -> Step | Indexed | None:
        if not isinstance(step, Step) or factor == 1.0:
            return step
        return None if factor is None else step.times(factor)

    def _checked(self, op: Op, quantizer: Quantizer, step: Step | Indexed | None) -> _Operand:
        if step is None:
            return _Operand(None, f"there a {type(quantizer).__name__} quantizer has no codes of one step")
        rank = len(op.shape)
        if isinstance(step, Indexed) and (op.key.kind != "matmul" or step.axis % rank >= rank - 2):
            return _Operand(None, f"its input has a step for each index of axis {step.axis}, along which it sums")
        return _Operand(step)

    def _place(self, op: Op, operands: tuple[_Operand, ...], transforms: dict[Point, Transform]) -> None:
        """Codes directly at the operands of a product; steps by index are taken out and given to the result."""
        scales = []
        for slot, operand in enumerate(operands):
            step = operand.step
            if isinstance(step, Indexed):
                shape = [1] * len(op.shape)
                shape[step.axis] = -1
                scale = step.scale.view(shape)
                scales.append(scale)
                transforms[op.key, slot] = _divided(scale, step.unit)
            elif step is not None:
                own = self._activations.get((op.key, slot))
                transforms[op.key, slot] = _behind(own.moved, step) if isinstance(own, Divided) else step
        if scales:
            whole = scales[0] if len(scales) == 1 else scales[0] * scales[1]
            transforms[op.key, OUTPUT] = _multiplied(whole, transforms.get((op.key, OUTPUT)))


def _transform(point: Point, quantizer: Quantizer) -> Transform:
    if isinstance(quantizer, Divided):
        return _behind(quantizer.moved, _transform(point, quantizer.base))
    step = uniform_step(quantizer)
    if not isinstance(step, Step):
        return quantizer
    op, slot = point
    return step.late if slot == OUTPUT and op.kind in MULTIPLYING and step.few else step


def _divided(scale: Tensor, then: Transform) -> Transform:
    return lambda x: then(x / scale)


def _behind(move: Transform, then: Transform) -> Transform:
    return lambda x: then(move(x))


def _multiplied(scale: Tensor, then: Transform | None) -> Transform:
    return lambda y: y * scale if then is None else then(y * scale)


def _factors(quantized: Quantized, graph: Trace, model: VisionModel) -> Mapping[Point, float]:
    """By what number values of stored results are multiplied on the way to the products that take them.

    It is found by a pass in which all those results are replaced by ones: what reaches an operand then is the number,
    or 0 where it was padded.
    """
    stored = {op for op, slot in quantized.activations or {} if slot == OUTPUT}
    wanted = [
        (op.key, slot)
        for op in graph.ops
        for slot, operand in enumerate(op.operands)
        if op.macs and len(operand.ops) == 1 and not operand.altered and operand.ops <= stored
    ]
    if not wanted:
        return {}
    found: dict[Point, Tensor] = {}
    ones: dict[Point, Transform] = {(op, OUTPUT): torch.ones_like for op in stored}
    images = next(quantized.net.parameters()).new_zeros(TRACED_IMAGES, *model.input_shape)
    with Interceptor(quantized.net, {**tap_transforms(wanted, found), **ones}):
        quantized.net(images)
    factors = {point: _number(found[point]) for point in wanted if point in found}
    return {point: factor for point, factor in factors.items() if factor is not None}


def _number(x: Tensor) -> float | None:
    """The positive number that all values of `x` are, or 0."""
    values = x[x != 0].unique()
    return float(values) if values.numel() == 1 and float(values) > 0 else None
