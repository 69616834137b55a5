"""How the network's output loss changes with the output of a segment: gradients, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from methods.core.graph.segments import Segment
from methods.core.reconstruction.losses import logit_divergence
from methods.core.reconstruction.walk import Walk, with_tensors


def output_loss(model: VisionModel, output: Any, reference: Any, temperature: float) -> Tensor:
    """`logit_divergence` for logits (n, classes); for other outputs the task's own distance, without a temperature."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return logit_divergence(output, reference, temperature)
    return model.output_distance(output, reference)


def gradients(
    model: VisionModel,
    floats: Walk,
    segment: Segment,
    values: Sequence[Tensor],
    *,
    outputs: Sequence[Tensor],
    temperature: float,
) -> list[Tensor]:
    """Gradients of the output loss in the segment's output, each image by itself.

    What comes after the segment is the float network.

    Args:
        model: the float model.
        floats: walk of the float network that has entered the segment.
        segment: the segment.
        values: its output, where the gradients are taken, all images.
        outputs: of the blocks before it.
        temperature: see `output_loss`.
    """
    count = len(values)

    def batch(numbers: Tensor, *tensors: Tensor) -> list[Tensor]:
        images, rest = ImageSet(tensors[0], numbers), tensors[1:]
        leaves = [x.detach().requires_grad_() for x in rest[:count]]
        with torch.no_grad():
            reference = images.through(floats.net)
        with torch.enable_grad():
            output = with_tensors(reference, leaves) if floats.is_tail(segment) else leaves[0].clone()
            final = floats.finish(segment, output, images, rest[count:])
            # The copy above is for networks that add in place. The loss is a mean over the batch.
            loss = output_loss(model, final, reference, temperature) * len(images)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    return floats.batched(batch, [floats.images, *values, *outputs])
