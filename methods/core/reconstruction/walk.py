"""Walking a network from front to back, segment by segment, from cached inputs; unlike the search's `SegmentRunner`
with gradients, on batches, and on two networks side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from harness.api.images import ImageSet
from methods.core.graph.outputs import tensors
from methods.core.graph.segments import Segment, finish, first_arguments, replaced
from methods.core.graph.structure import Piece

Inputs = list[Tensor]  # of one segment, all batch-first


class Walk:
    """One network's blocks on the calibration images. What a segment needs is computed once, without gradients.

    Inputs of a block are its first argument; inputs of a gap are the images and the outputs of all blocks before it,
    which then return those instead of computing. Other arguments of a block are taken to be the same for all images.

    Args:
        net: the network; nothing is changed in it once a call has returned.
        blocks: its blocks.
        images: calibration images (n, c, h, w).
        batch: images at once where no gradient is needed.
    """

    def __init__(self, net: nn.Module, blocks: Sequence[Piece], images: Tensor, batch: int) -> None:
        self.net = net
        self.images = images
        self.numbers = ImageSet.whole(images).numbers
        self.outputs: list[Tensor] = []  # of the blocks passed so far
        self._paths = [block.path for block in blocks]
        self._modules = [net.get_submodule(path) for path in self._paths]
        self._batch = batch
        self._rest: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def is_tail(self, segment: Segment) -> bool:
        """Whether the segment's output is the network's."""
        return segment.is_tail(len(self._modules))

    def name(self, segment: Segment) -> str:
        """The block's path, or where the gap is."""
        if self.is_tail(segment):
            return f"after {self._paths[-1]}"
        path = self._paths[segment.index]
        return path if segment.is_block else f"before {path}"

    def enter(self, segment: Segment) -> Inputs:
        """The segment's inputs, all images; what comes before it must not change any more."""
        while len(self.outputs) < segment.index:
            block = Segment(len(self.outputs), True, ())
            self.outputs += self.every(block, self._block_inputs(block.index))
        return self._block_inputs(segment.index) if segment.is_block else [self.images, *self.outputs]

    def _block_inputs(self, index: int) -> Inputs:
        return self.every(Segment(index, False, ()), [self.images, *self.outputs])

    @torch.no_grad()
    def every(self, segment: Segment, inputs: Inputs) -> list[Tensor]:
        """The tensors of the segment's output for all images."""
        return self.batched(lambda numbers, *parts: tensors(self.run(segment, list(parts), numbers)), inputs)

    def batched(self, function: Callable[..., list[Tensor]], inputs: Inputs) -> list[Tensor]:
        """`function` of batches of all images' numbers and `inputs`, its results joined."""
        batches = zip(*(x.split(self._batch) for x in (self.numbers, *inputs)), strict=True)
        # Copies, since the network may add to its input in place.
        parts = [function(*(x.clone() for x in batch)) for batch in batches]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def run(self, segment: Segment, inputs: Inputs, numbers: Tensor) -> Any:
        """The segment's output on a batch of its inputs, of images with these `numbers` (n,); of a gap before a block,
        that block's first argument.
        """
        if segment.is_block:
            args, kwargs = self._rest[segment.index]
            return self._modules[segment.index](*inputs, *args, **kwargs)
        images, outputs = ImageSet(inputs[0], numbers), inputs[1:]
        if self.is_tail(segment):
            with replaced(self._modules, outputs):
                return images.through(self.net)

        def from_images() -> None:
            with replaced(self._modules[: segment.index], outputs):
                images.through(self.net)

        (first, *others), kwargs = first_arguments(self._modules[segment.index], from_images)
        self._rest[segment.index] = tuple(others), kwargs
        return first

    def finish(self, segment: Segment, output: Any, images: ImageSet, outputs: Sequence[Tensor]) -> Any:
        """The network's output when `segment` gives `output`, and the blocks before it `outputs`."""
        return finish(self.net, self._modules, segment, images, outputs, output=output)


def with_tensors(output: Any, values: Sequence[Tensor]) -> Any:
    """`output` with its floating-point tensors replaced by `values`."""
    left = iter(values)
    leaves, spec = pytree.tree_flatten(output)
    new = [next(left) if isinstance(x, Tensor) and x.is_floating_point() else x for x in leaves]
    return pytree.tree_unflatten(new, spec)
