"""Evol-Q's fitness from cached pieces of the network, and its evolution of one block's scales (METHODS, section 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from methods.core.contrast import output_contrast
from methods.core.graph.outputs import tensor_pairs
from methods.core.graph.segments import Segment
from methods.core.graph.structure import Block
from methods.core.graph.trace import Trace
from methods.core.quantized import Quantized
from methods.core.segment_runner import SegmentRunner

_SMALLEST = 1e-8  # scale


def check_images(images: Tensor) -> None:
    """Whether candidates can be ranked.

    Raises:
        ValueError: there is one image.
    """
    if len(images) < 2:
        raise ValueError("one image has no other to contrast with: evolq ranks no candidates; take at least 2 images")


def contrast(output: Any, reference: Any, temperature: float) -> float:
    """2 T times the mean over images j of -log softmax_m(cos(q_j, k_m) / T)_j.

    q and k are the quantized and the float model's output vectors of one batch; outputs of several tensors give the
    mean of theirs.
    """
    losses = [output_contrast(a, b, temperature, pooling="none")[0] for a, b in tensor_pairs(output, reference)]
    return float(2.0 * temperature * torch.stack(losses).mean())


class Fitness:
    """The contrastive loss of a quantized model under search; less is better.

    The float model's outputs are computed once. Blocks are searched from the last to the first, so that what comes
    before the block at hand is as it was when the pass began: a candidate costs its block and those behind.

    Args:
        model: the float model.
        quantized: the model under search; its weights are read at every run.
        graph: the network's trace.
        blocks: its transformer blocks.
        images: calibration images (n, c, h, w).
        batch: images that are contrasted with each other; one that is left over joins the last of them.
        temperature: T.
    """

    def __init__(
        self,
        model: VisionModel,
        quantized: Quantized,
        graph: Trace,
        blocks: list[Block],
        images: Tensor,
        *,
        batch: int,
        temperature: float,
    ) -> None:
        parts = _batches(images, batch)
        self._sizes = [len(part) for part in parts]
        self._references = [part.through(model.net) for part in parts]
        self._runners = [SegmentRunner(quantized, graph, blocks, part) for part in parts]
        self._tail = Segment(len(blocks), False, ())
        self._temperature = temperature
        self.evaluated = 0

    def renew(self) -> None:
        """Cache every block's output with the weights as they are now."""
        for runner in self._runners:
            runner.restart()
            with runner:
                runner.enter(self._tail)

    def value(self, block: int = 0) -> float:
        """The loss with the weights as they are now; those before block number `block` must be as in `renew`."""
        total = 0.0
        for size, reference, runner in zip(self._sizes, self._references, self._runners, strict=True):
            with runner:
                output = runner.logits(Segment(block, True, ()))
            total += size * contrast(output, reference, self._temperature)
        self.evaluated += 1
        return total / sum(self._sizes)


def _batches(images: Tensor, size: int) -> list[ImageSet]:
    """All images in their order, `size` at once; none alone, since the loss of one image is 0 whatever is measured."""
    whole = ImageSet.whole(images)
    starts = [start for start in range(0, len(images), size) if start == 0 or start + 1 < len(images)]
    return [whole[start:end] for start, end in zip(starts, [*starts[1:], len(images)], strict=True)]


def mutated(scales: Tensor, epsilon: float, *, relative: bool, generator: torch.Generator) -> Tensor:
    """|v + U(-epsilon, epsilon)| for scales v (n,), or with `relative` |v + v U(-epsilon, epsilon)|."""
    noise = (2.0 * torch.rand(len(scales), generator=generator) - 1.0).mul_(epsilon).to(scales)
    return (scales + (noise * scales if relative else noise)).abs_().clamp_(min=_SMALLEST)


def evolve(
    start: Tensor,
    value: float,
    measure: Callable[[Tensor], float],
    mutate: Callable[[Tensor], Tensor],
    *,
    population: int,
    sample: int,
    cycles: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """The fittest vector and its loss after `cycles` times: the best of some drawn ones is copied with a mutation, the
    copy measured and added, and the worst dropped. It is at least as fit as `start`, whose loss is `value`.
    """
    members = [(value, start)] * population
    for _ in range(cycles):
        drawn = torch.randint(len(members), (sample,), generator=generator).tolist()
        parent = min((members[i] for i in drawn), key=_loss)
        child = mutate(parent[1])
        members.append((measure(child), child))
        del members[max(range(len(members)), key=lambda i: (members[i][0], i))]  # of equals the newest
    best = min(members, key=_loss)
    return best[1], best[0]


def _loss(member: tuple[float, Tensor]) -> float:
    return member[0]  # tuples themselves would compare tensors where losses are equal
