"""What the search of an operation needs: its factors in the float network, and the gradient of a loss in its output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import Interceptor, OpKey, Transform
from methods.core.graph.layers import LAYERS
from methods.core.graph.sites import Point, Sites
from methods.core.numerics.observers import MinMax
from methods.core.quantized import Quantized

_COMPUTE: dict[str, Callable[..., Tensor]] = {**LAYERS, "matmul": torch.matmul}
# Bytes of factors and gradients held at once; a larger network is passed through again for its next operations. The
# embedded models need one pass, DeiT-S with 32 images five.
_HELD = 2**30


class Target(NamedTuple):
    """What is to be captured: the operation whose output `point` is, with its factors, or else the tensor there.

    An operation is a linear layer, convolution or matrix product.
    """

    point: Point
    product: bool


@dataclass
class Capture:
    """One operation, or one tensor that is judged by itself.

    `inputs` are the activations among its factors, `gradients` the loss's in its output: in both one entry for each
    call, or after `join` for each shape; `gradients` is empty if none were asked for. `constants` are the other
    arguments of a layer, from the weight on.
    """

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    constants: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def join(self) -> None:
        """Join batches of one shape, so that they are computed together."""
        together: dict[tuple[torch.Size, ...], list[int]] = {}
        for i, factors in enumerate(self.inputs):
            together.setdefault(tuple(x.shape[1:] for x in factors), []).append(i)
        inputs, gradients = self.inputs, self.gradients
        self.inputs = [
            tuple(torch.cat([inputs[i][slot] for i in places]) for slot in range(len(inputs[places[0]])))
            for places in together.values()
        ]
        if gradients:
            self.gradients = [torch.cat([gradients[i] for i in places]) for places in together.values()]


class Gradients:
    """The loss whose gradient guides the search (METHODS: 5f), and the network in which it is taken.

    Args:
        kind: see `SearchOptions.gradient`.
        model: the float model.
        sites: what is quantized.
        images: calibration images (n, c, h, w), for the ranges of the quantized network.
        batch: images per pass.
    """

    def __init__(self, kind: str, model: VisionModel, sites: Sites, images: Tensor, batch: int) -> None:
        self._kind = kind
        self._model = model
        self._net: nn.Module = model.net
        self._transforms: dict[Point, Transform] = {}
        if kind == "quantized":
            activations = activation_quantizers(sites, observe(model, images, sites, MinMax, batch))
            weights = weight_quantizers(model, sites, symmetric=True)
            self._net = Quantized(model.net, sites, weights, None).net
            self._transforms = dict(activations)

    def of(self, images: ImageSet, points: Sequence[Point]) -> dict[Point, list[Tensor]]:
        """Gradients at `points`, after their quantizers, in the order in which the network passes them.

        The loss of a classifier or segmentor is a sum over images, so that it does not matter how they are split. A
        detector's is relative to the spread of its batch.
        """
        with torch.no_grad():
            reference = images.through(self._model.net)
        found: dict[Point, list[Tensor]] = {point: [] for point in points}
        with torch.enable_grad():
            with Interceptor(self._net, self._transforms | {p: self._held(p, found[p]) for p in points}):
                output = images.through(self._net)
            loss = self._loss(output, reference) * len(images)
            flat = [x for tensors in found.values() for x in tensors]
            gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        return {p: [_or_zero(next(gradients), x) for x in tensors] for p, tensors in found.items()}

    def _loss(self, output: Any, reference: Any) -> Tensor:
        if self._kind == "argmax":
            return self._model.target_loss(output, reference.argmax(-1))
        return self._model.output_distance(output, reference)

    def _held(self, point: Point, found: list[Tensor]) -> Transform:
        quantizer = self._transforms.get(point)

        def transform(x: Tensor) -> Tensor:
            y = x if quantizer is None else quantizer(x)
            if not y.requires_grad:  # the first point of the network: no parameter has a gradient
                y = y.detach().clone().requires_grad_()
            found.append(y)
            return y.clone()  # the network may change it in place

        return transform


def _or_zero(gradient: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if gradient is None else gradient


def capture(
    model: VisionModel, images: Tensor, targets: Sequence[Target], gradients: Gradients | None, batch: int
) -> Iterator[tuple[Target, Capture]]:
    """Captures of `targets` in their order, as many passes as memory asks for.

    Args:
        model: the float model.
        images: (n, c, h, w).
        targets: what is wanted.
        gradients: where gradients come from; None if none are needed.
        batch: images per pass.
    """
    whole = ImageSet.whole(images)
    for group in _groups(targets, _sizes(model, whole, targets, with_gradients=gradients is not None)):
        found = _pass(model, whole, group, batch)
        if gradients is not None:
            points = list(dict.fromkeys(target.point for target in group))
            for part in whole.batches(batch):
                values = gradients.of(part, points)
                for target in group:
                    found[target].gradients += values[target.point]
        for target in group:
            held = found.pop(target)
            held.join()
            yield target, held


def _groups(targets: Sequence[Target], sizes: Mapping[Target, int]) -> Iterator[list[Target]]:
    group: list[Target] = []
    for target in targets:
        if group and sum(sizes[t] for t in group) + sizes[target] > _HELD:
            yield group
            group = []
        group.append(target)
    if group:
        yield group


def _sizes(
    model: VisionModel, images: ImageSet, targets: Sequence[Target], *, with_gradients: bool
) -> dict[Target, int]:
    """Bytes that every target needs for all `images`, from a pass of one."""
    sizes: Counter[Target] = Counter()
    points = {target.point for target in targets}
    outputs: Counter[Point] = Counter()

    def count(point: Point) -> Transform:
        def transform(x: Tensor) -> Tensor:
            outputs[point] += x.numel()
            return x

        return transform

    for target, held in _pass(model, images[:1], targets, 1, {point: count(point) for point in points}).items():
        inputs = sum(x.numel() for factors in held.inputs for x in factors)
        sizes[target] = 4 * len(images) * (inputs + outputs[target.point] * with_gradients)
    return sizes


@torch.no_grad()
def _pass(
    model: VisionModel,
    images: ImageSet,
    targets: Sequence[Target],
    batch: int,
    also: Mapping[Point, Transform] | None = None,
) -> dict[Target, Capture]:
    """Inputs of `targets`, batches not joined, in the float network under the transforms `also`."""
    found = {target: Capture() for target in targets}

    def product(key: OpKey, held: Capture) -> Callable[..., Tensor]:
        activations = 2 if key.kind == "matmul" else 1

        def compute(*args: Any, **named: Any) -> Tensor:
            # Copies, since the network may change its tensors in place.
            held.inputs.append(tuple(x.clone() for x in args[:activations]))
            held.constants, held.named = args[activations:], named
            return _COMPUTE[key.kind](*args, **named)

        return compute

    def itself(point: Point, held: Capture) -> Transform:
        then = (also or {}).get(point)

        def transform(x: Tensor) -> Tensor:
            held.inputs.append((x.clone(),))
            return x if then is None else then(x)

        return transform

    instead = {t.point[0]: product(t.point[0], held) for t, held in found.items() if t.product}
    transforms = dict(also or {}) | {t.point: itself(t.point, held) for t, held in found.items() if not t.product}
    with Interceptor(model.net, transforms, instead=instead):
        for part in images.batches(batch):
            part.through(model.net)
    return found
