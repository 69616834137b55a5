"""Running pieces of a quantized network: one transformer block, or what lies between two blocks.

The search changes one layer at a time. What comes before that layer in its segment is replayed from a recording, what
comes before the segment is replaced by cached block outputs, and what comes after is not run: a candidate costs its
layer plus the rest of its segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from harness.api.images import ImageSet
from methods.core.graph.intercept import OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.segments import Segment, finish, first_arguments, replaced, tapped
from methods.core.graph.sites import WeightSite
from methods.core.graph.structure import Block
from methods.core.graph.trace import Trace
from methods.core.numerics.chunks import at_once
from methods.core.quantized import Quantized


class SegmentRunner:
    """Cached execution of a quantized network's segments on fixed images. Use within `with runner:`.

    Inputs and outputs of blocks are cached as they are first needed, so a layer may only change while no segment after
    its own is cached, or `restart` must follow.

    Args:
        quantized: the network; its quantizers are read at every run.
        graph: its trace.
        blocks: its transformer blocks.
        images: calibration images, all of a set or some.
    """

    def __init__(self, quantized: Quantized, graph: Trace, blocks: list[Block], images: ImageSet) -> None:
        self._quantized = quantized
        self._images = images
        self._modules = [quantized.net.get_submodule(b.path) for b in blocks]
        self._batched = {op.key for op in graph.ops if op.batched}
        self._outputs: list[Tensor] = []  # of the blocks passed so far
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._recorded: dict[OpKey, Tensor | None] = {}
        self._mode = quantized.interceptor()

    def __enter__(self) -> SegmentRunner:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Begin to intercept; nothing but segments may run until `close`."""
        self._opened = ExitStack()
        self._opened.enter_context(torch.no_grad())
        self._opened.enter_context(self._mode)

    def close(self) -> None:
        """Stop intercepting; caches stay."""
        self._opened.close()

    def restart(self) -> None:
        """Forget all caches and take up the activation quantizers anew."""
        self._outputs.clear()
        self._inputs.clear()
        self._recorded.clear()
        self.reload()

    def reload(self) -> None:
        """Take up changed activation quantizers; caches of what comes before them stay."""
        self._mode.transforms = dict(self._quantized.activations or {})

    def enter(self, segment: Segment) -> None:
        """Cache what `segment` needs from the segments before it, as they are quantized now."""
        last = segment.index + 1 if segment.is_block else segment.index
        while len(self._inputs) < last:
            # Inputs of the next block need the outputs of all before it.
            self._complete_outputs(len(self._inputs))
            self._inputs.append(self._block_input(len(self._inputs), 1))
        self._complete_outputs(segment.index)

    def _complete_outputs(self, count: int) -> None:
        while len(self._outputs) < count:
            i = len(self._outputs)
            args, kwargs = self._inputs[i]
            self._outputs.append(self._modules[i](*args, **kwargs))

    def _block_input(self, index: int, copies: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return first_arguments(self._modules[index], lambda: self._whole(index, copies))

    def _whole(self, known: int, copies: int) -> Any:
        """Run the network with the outputs of its first `known` blocks given."""
        outputs = [_copied(output, copies) for output in self._outputs[:known]]
        with replaced(self._modules[:known], outputs):
            return self._images.repeated(copies).through(self._quantized.net)

    def record(self, segment: Segment) -> Any:
        """Run `segment` as it is now, remember every operation's output, and return the segment's output."""
        self._recorded = {}
        self._mode.record = self._recorded
        output = self.run(segment)
        self._mode.record = None
        return output

    def candidates(self, segment: Segment, layer: WeightSite, weights: Tensor) -> Any:
        """The segment's outputs for k `weights` (k, *weight.shape) of `layer`: (k * n, ...), candidate by candidate.

        Everything before the layer is as recorded. The layer's input is the same for all candidates, so that one
        product with all weights side by side gives all outputs; the rest of the segment runs on a batch of k * n.
        At most `at_once` candidates can be run together.
        """
        k = len(weights)
        replay: dict[OpKey, Tensor] = {}
        for key, value in self._recorded.items():
            if key == layer.op:
                break
            if value is not None and key in self._batched:
                replay[key] = _copied(value, k)
        alike = self._recorded[layer.op] is not None  # else it runs several times, perhaps on its own results
        self._mode.replay, self._mode.instead = replay, {layer.op: _side_by_side(layer.op.kind, weights, alike)}
        try:
            return self.run(segment, k)
        finally:
            self._mode.replay, self._mode.instead = {}, {}

    def at_once(self, layer: WeightSite) -> int:
        """How many candidates of `layer` are run together, in the segment recorded last.

        One by one if it sees no image: its result, as a position bias made by a network, goes with the whole batch.
        """
        if layer.op not in self._batched:
            return 1
        # k candidates make k times the largest tensor.
        return at_once(self._images.images.device, max(x.numel() for x in self._recorded.values() if x is not None))

    def run(self, segment: Segment, copies: int = 1) -> Any:
        """The segment's output from its cached input, the images repeated `copies` times."""
        if segment.is_block:
            (first, *args), kwargs = self._inputs[segment.index]
            return self._modules[segment.index](_copied(first, copies), *args, **kwargs)
        if segment.index < len(self._modules):
            return self._block_input(segment.index, copies)[0][0]
        return self._whole(len(self._modules), copies)

    def logits(self, segment: Segment, output: Any = None) -> Any:
        """The network's output; `output` is the segment's for the same images, if known, so that less is run.

        What a stem or downsampling hands on beside its output to the next block is computed with the weights in use.
        """
        known = [_copied(x, 1) for x in self._outputs[: segment.index]]
        return finish(self._quantized.net, self._modules, segment, self._images, known, output=output)

    def onward(self, segment: Segment, output: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
        """The same with what it passes: inputs and outputs of all blocks."""
        with tapped(self._modules) as (inputs, outputs):
            return self.logits(segment, output), inputs, outputs

    def suffix(
        self, known: Sequence[Tensor], copies: int, weights: Mapping[WeightSite, Tensor]
    ) -> tuple[Any, list[Tensor], list[Tensor]]:
        """Run `copies` networks side by side from where they are known: the output, inputs and outputs of all blocks.

        Args:
            known: outputs of the first blocks, (copies * n, ...), network by network; the run may write into them.
            copies: how many networks.
            weights: (copies, *weight.shape) of the layers in which they differ; else all have the weights in use.
        """
        self._mode.instead = {site.op: _side_by_side(site.op.kind, w, alike=False) for site, w in weights.items()}
        try:
            with replaced(self._modules[: len(known)], known), tapped(self._modules) as (inputs, outputs):
                return self._images.repeated(copies).through(self._quantized.net), inputs, outputs
        finally:
            self._mode.instead = {}

    def sees_images(self, layer: WeightSite) -> bool:
        """Whether the layer's result depends on the images, so that networks side by side may differ in it."""
        return layer.op in self._batched


def _copied(x: Tensor, copies: int) -> Tensor:
    # A copy also of one, since the network may add to it in place.
    return x.repeat(copies, *[1] * (x.dim() - 1))


def _side_by_side(kind: str, weights: Tensor, alike: bool) -> Callable[..., Tensor]:
    """A layer's function that applies k weights (k, out, ...), of a transposed convolution (k, in, out, ...), to k
    parts of its batch; `alike` if the parts are equal.
    """
    function = LAYERS[kind]
    k, out = weights.shape[:2]

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if k == 1:
            return function(x, weights[0], bias, *args, **kwargs)
        rows = len(x) // k
        grouped = kind == "conv" and weight.shape[1] != x.shape[1]
        if grouped or kind == "conv_transpose" or not alike:
            parts = [function(x[i * rows : (i + 1) * rows], weights[i], bias, *args, **kwargs) for i in range(k)]
            return torch.cat(parts)
        every = None if bias is None else bias.repeat(k)
        y = function(x[:rows], weights.flatten(0, 1), every, *args, **kwargs)
        axis = 1 if weight.dim() > 2 else y.dim() - 1
        return torch.unflatten(y, axis, (k, out)).movedim(axis, 0).flatten(0, 1)

    return apply


@torch.no_grad()
def float_outputs(net: nn.Module, blocks: list[Block], images: Tensor) -> tuple[list[Tensor], list[Tensor], Any]:
    """One pass of the float network: inputs of all blocks, outputs of all blocks, and the network's output."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = []
    for block in blocks:
        module = net.get_submodule(block.path)
        handles.append(module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])))
        handles.append(module.register_forward_hook(lambda _m, _args, result: outputs.append(result)))
    try:
        final = net(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs, final
