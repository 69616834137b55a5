"""GLF-Q's loss: what a unit does to the network's last features, beside what it does to its own output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.images import ImageSet
from methods.core.graph.intercept import Interceptor, tap_transforms
from methods.core.graph.layers import LAYERS
from methods.core.graph.operations import MULTIPLYING
from methods.core.graph.outputs import tensors
from methods.core.graph.segments import Segment
from methods.core.graph.sites import Point
from methods.core.graph.trace import Trace
from methods.core.reconstruction.losses import average
from methods.core.reconstruction.walk import Walk

_LEAST = 1e-12  # of what an error is divided by


def head_inputs(graph: Trace) -> list[Point]:
    """Inputs of the layers that a network ends with, two of a distilled one; none if it ends with something else."""
    heads: dict[Point, None] = {}
    waiting, seen = list(graph.outputs or ()), set(graph.outputs or ())
    while waiting:
        key = waiting.pop()
        if key.kind in LAYERS:
            heads[key, 0] = None
            continue
        sources = {source for operand in graph.by_key[key].operands for source in operand.ops}
        if key.kind in MULTIPLYING or not sources:
            return []
        waiting += sources - seen
        seen |= sources
    return [(op.key, 0) for op in graph.ops if (op.key, 0) in heads]


class Features:
    """Last features of a float network: what its classifier's head takes; of other networks their outputs.

    Args:
        floats: walk of the float network.
        graph: its trace.
    """

    def __init__(self, floats: Walk, graph: Trace) -> None:
        self._floats = floats
        self._points = head_inputs(graph)
        self.targets = floats.batched(self._whole, [floats.images])  # of all images

    @torch.no_grad()
    def _whole(self, numbers: Tensor, images: Tensor) -> list[Tensor]:
        return self._of(lambda: ImageSet(images, numbers).through(self._floats.net))

    def after(self, segment: Segment, output: Tensor, index: Tensor, before: Sequence[Tensor]) -> list[Tensor]:
        """Features of a batch when `segment`, which is not the tail, gives `output` and the float network goes on.

        Args:
            segment: where.
            output: the segment's (n, ...); features are differentiable in it.
            index: the images of the batch (n,).
            before: outputs of the blocks before, of all images.
        """
        floats = self._floats
        images = ImageSet(floats.images[index], floats.numbers[index])
        known = [x[index] for x in before]
        # A copy, for networks that add in place.
        return self._of(lambda: floats.finish(segment, output.clone(), images, known))

    def _of(self, run: Callable[[], Any]) -> list[Tensor]:
        found: dict[Point, Tensor] = {}
        with Interceptor(self._floats.net, tap_transforms(self._points, found)):
            output = run()
        logits = isinstance(output, Tensor) and output.dim() == 2
        return [found[point] for point in self._points] if logits and found else tensors(output)


class GlobalLocal:
    """Squared error of the last features plus `local` times that of the unit's outputs, both over their first values.

    Args:
        features: makes the features of a batch from the unit's outputs and the images' index; None where there are none
            behind the unit, which leaves its outputs.
        targets: the float model's features, of all images.
        local: weight of the unit's own error.
    """

    def __init__(
        self,
        features: Callable[[Sequence[Tensor], Tensor], Sequence[Tensor]] | None,
        targets: Sequence[Tensor],
        local: float,
    ) -> None:
        self._features = features
        self._targets = targets
        self._local = local
        self._first: list[Tensor] | None = None

    def renew(self, step: int) -> None:
        """Nothing changes."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        pairs = list(zip(outputs, targets, strict=True)) if self._local else []
        local = len(pairs)
        if self._features is not None:
            reference = [x[index] for x in self._targets]
            pairs += list(zip(self._features(outputs, index), reference, strict=True))
        errors = [functional.mse_loss(a, b) for a, b in pairs]
        if self._first is None:
            self._first = [error.detach().clamp(min=_LEAST) for error in errors]
        scaled = [error / first for error, first in zip(errors, self._first, strict=True)]
        terms = [
            weight * average(part) for weight, part in ((self._local, scaled[:local]), (1.0, scaled[local:])) if part
        ]
        return torch.stack(terms).sum()
