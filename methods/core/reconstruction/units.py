"""What is reconstructed at a time: a segment of the network (a block, stem, downsampling or head), or one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from methods.core.graph.flow import Op
from methods.core.graph.intercept import Interceptor, OpKey, Transform
from methods.core.graph.layers import LAYERS
from methods.core.graph.outputs import tensors
from methods.core.graph.segments import Segment, channel_axis
from methods.core.graph.sites import Point, WeightSite
from methods.core.graph.trace import Trace
from methods.core.reconstruction.walk import Inputs, Walk

Weights = Mapping[str, Tensor]


class Unit(Protocol):
    """Something whose output is compared with the float model's, with the weights `names` inside."""

    name: str
    names: tuple[str, ...]
    float_inputs: Inputs  # all images, batch-first
    inputs: Inputs  # the same as quantized so far
    targets: list[Tensor]  # outputs of the float model on float inputs

    def axis(self, output: Tensor) -> int:
        """The channels of an output."""

    def session(self, transforms: Mapping[Point, Transform], weights: Weights) -> Any:
        """A context within which `outputs` works, with activations passed through `transforms`; `weights` may change
        meanwhile, and a weight that it lacks is the network's own.
        """

    def outputs(self, inputs: Inputs, numbers: Tensor) -> list[Tensor]:
        """Outputs for a batch of inputs, of images with these `numbers` (n,), with gradients."""


class SegmentUnit:
    """A segment. Its inputs are those that `Walk.enter` gives.

    Args:
        floats: walk of the float network, not beyond the segment.
        quants: walk of the network as quantized so far, to be used within `transforms`.
        segment: the segment.
        graph: the network's trace.
        transforms: activation quantizers of what comes before, and of the segment as it starts.
    """

    def __init__(
        self, floats: Walk, quants: Walk, segment: Segment, graph: Trace, transforms: Mapping[Point, Transform]
    ) -> None:
        self.segment = segment
        self.name = floats.name(segment)
        self.names = tuple(site.parameter for site in segment.layers)
        self.float_inputs = floats.enter(segment)
        with Interceptor(quants.net, dict(transforms)):
            self.inputs = quants.enter(segment)
        self.targets = floats.every(segment, self.float_inputs)
        self._tail = floats.is_tail(segment)
        self._walk = quants
        self._ops = {op.key: op.weight for op in graph.ops if op.weight in self.names}

    def axis(self, output: Tensor) -> int:
        """See `channel_axis`."""
        return channel_axis(output, tail=self._tail)

    @contextmanager
    def session(self, transforms: Mapping[Point, Transform], weights: Weights) -> Iterator[None]:
        """Intercept the quantized network."""

        def apply(key: OpKey, name: str) -> Callable[..., Tensor]:
            function = LAYERS[key.kind]

            def instead(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                return function(x, weights.get(name, weight), *args, **kwargs)

            return instead

        functions = {key: apply(key, name) for key, name in self._ops.items()}
        with Interceptor(self._walk.net, dict(transforms), instead=functions):
            yield

    def outputs(self, inputs: Inputs, numbers: Tensor) -> list[Tensor]:
        """Tensors of the segment's output."""
        return tensors(self._walk.run(self.segment, inputs, numbers))

    @torch.no_grad()
    def points(self, among: Iterable[Point]) -> list[Point]:
        """Those of them that run within the segment (and before it, where it is a gap)."""
        met: dict[Point, None] = {}

        def watch(point: Point) -> Transform:
            def transform(x: Tensor) -> Tensor:
                met[point] = None
                return x

            return transform

        with Interceptor(self._walk.net, {point: watch(point) for point in among}):
            self.outputs([x[:1].clone() for x in self.inputs], self._walk.numbers[:1])
        return list(met)


class LayerUnit:
    """One linear layer or convolution, with the activation function behind it if that alone takes its output.

    A layer that runs several times (a head on every level of a pyramid) has an input and an output for each run.

    Args:
        whole: the segment that the layer is in; its input quantizers are applied before the layer's own input is kept.
        floats: walk of the float network.
        quants: walk of the network as quantized so far, the layers before this one included.
        site: the layer.
        graph: the network's trace.
        transforms: activation quantizers.
    """

    def __init__(
        self,
        whole: SegmentUnit,
        floats: Walk,
        quants: Walk,
        site: WeightSite,
        *,
        graph: Trace,
        transforms: Mapping[Point, Transform],
    ) -> None:
        self.name, self._key = site.parameter, site.op
        self.names: tuple[str, ...] = (site.parameter,)
        self._weight = dict(quants.net.named_parameters())[site.parameter]
        batched = graph.by_key[site.op].batched
        behind = _activation(graph, site.op)
        before = _watch(
            floats,
            whole.segment,
            whole.float_inputs,
            site.op,
            batched=batched,
            activation=behind.key if behind is not None and behind.composite is None else None,
        )
        after = _watch(quants, whole.segment, whole.inputs, site.op, batched=batched, transforms=transforms)
        self.float_inputs, self.inputs = before.inputs, after.inputs
        self._others = before.others
        # One that is written out is no call that could be watched.
        self._activation = behind.function if behind is not None and behind.composite else before.activation
        self._weights: Weights = {}
        with self.session({}, {self.name: dict(floats.net.named_parameters())[site.parameter]}), torch.no_grad():
            self.targets = floats.batched(lambda numbers, *parts: self.outputs(list(parts), numbers), self.float_inputs)

    def axis(self, output: Tensor) -> int:
        """Convolutions are channels-first, behind the axis of images and that of a run's rows for an image."""
        return -1 if self._key.kind == "linear" else 2

    @contextmanager
    def session(self, transforms: Mapping[Point, Transform], weights: Weights) -> Iterator[None]:
        """Use `weights`; the layer's input is quantized already."""
        self._weights = weights
        try:
            yield
        finally:
            self._weights = {}

    def summed(self, inputs: Inputs) -> Iterator[Tensor]:
        """What the layer's outputs are sums over, (outputs, values) image by image; nothing for a layer of which that
        differs between output channels, or is not known.
        """
        for x, (args, kwargs) in zip(inputs, self._others, strict=True):
            if self._key.kind == "linear":
                yield x.flatten(0, -2)
                continue
            names = ("bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | kwargs
            padding = given.get("padding", 0)
            if self._key.kind != "conv" or given.get("groups", 1) != 1 or isinstance(padding, str):
                return
            window = {"dilation": given.get("dilation", 1), "padding": padding, "stride": given.get("stride", 1)}
            for image in x:
                yield functional.unfold(image, self._weight.shape[2:], **window).transpose(1, 2).flatten(0, 1)

    def outputs(self, inputs: Inputs, numbers: Tensor) -> list[Tensor]:
        """The layer's outputs (images, rows, ...)."""
        weight = self._weights.get(self.name, self._weight)
        found = []
        for x, (args, kwargs) in zip(inputs, self._others, strict=True):
            y = LAYERS[self._key.kind](x.flatten(0, 1), weight, *args, **kwargs)
            y = y if self._activation is None else self._activation(y)
            found.append(y.unflatten(0, x.shape[:2]))
        return found


@dataclass(frozen=True)
class _Watched:
    """What was seen of a layer: its input (images, rows, ...) and other arguments in every run of it in a forward pass,
    and the function of the activation behind it.
    """

    inputs: Inputs
    others: list[tuple[tuple[Any, ...], dict[str, Any]]]
    activation: Callable[[Tensor], Tensor] | None


@torch.no_grad()
def _watch(
    walk: Walk,
    segment: Segment,
    inputs: Inputs,
    layer: OpKey,
    *,
    batched: bool,
    transforms: Mapping[Point, Transform] | None = None,
    activation: OpKey | None = None,
) -> _Watched:
    seen: list[Tensor] = []
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    functions: list[Callable[[Tensor], Tensor]] = []

    class Watch(Interceptor):
        def operation(self, key: OpKey, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if key == activation:
                functions.append(lambda x: func(x, *args[1:], **kwargs))
            return super().operation(key, func, args, kwargs)

    def keep(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x.clone())
        others.append((args, kwargs))
        return LAYERS[layer.kind](x, weight, *args, **kwargs)

    def part(numbers: Tensor, *pieces: Tensor) -> list[Tensor]:
        seen.clear()
        walk.run(segment, list(pieces), numbers)
        images = len(pieces[0])
        # A window's rows stand beside each other (Swin). What does not depend on the images is the same for each.
        return [x.unflatten(0, (images, -1)) if batched else x.expand(images, *x.shape) for x in seen]

    with Watch(walk.net, dict(transforms or {}), instead={layer: keep}):
        found = walk.batched(part, inputs)
    return _Watched(found, others[: len(found)], functions[0] if functions else None)


def _activation(graph: Trace, layer: OpKey) -> Op | None:
    """The activation function that takes the layer's output, if nothing else does: an operation of its own, or the last
    one of a known function that is written out, whose steps take that output as well.
    """
    consumers = graph.consumers[layer]
    found = [op for op in consumers if op.key not in graph.steps]
    if len(found) != 1 or found[0].role != "activation":
        return None
    (op,) = found
    if op.composite is None:
        return op if len(consumers) == 1 else None
    return op if op.function is not None and op.family == graph.by_key[layer].family else None
