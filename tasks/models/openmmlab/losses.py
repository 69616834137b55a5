"""Pseudo-targets, their losses and output distances of dense models, for the callables of `VisionModel`.

With them a data-free method runs on a segmentation or detection model as it does on a classifier. **A reconstruction**:
CLAMP-ViT reports COCO and ADE20K, but no source says what its output loss or targets are there, and
PSAQ-ViT's code is classification only. Everything below is our own design, in the manner of PSAQ-ViT's random classes.

Methods mirror the images at random without telling the targets. So all targets here are mirror images of themselves,
or half of the steps would pull against the other half (a label map to within a column at the logits' resolution).
Methods also roll the images, by 13 % of the width at most; targets do not roll with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.models.timm_models import kl_divergence

CELLS = (2, 5)  # fewest and most cells per side of a random label map
SIDES = (0.2, 0.7)  # shortest and longest side of a random box, as a share of the image's


def random_label_maps(count: int, classes: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Label maps (count, *size), int64: coarse grids of random classes at `size`, the right side mirrored."""
    maps = []
    for _ in range(count):
        rows, columns = torch.randint(CELLS[0], CELLS[1] + 1, (2,), generator=generator).tolist()
        maps.append(_nearest(torch.randint(classes, (rows, columns), generator=generator), *size))
    found = torch.stack(maps)
    half = size[1] // 2
    found[..., size[1] - half :] = found[..., :half].flip(-1)
    return found


def _centres(count: int, length: int, device: torch.device) -> Tensor:
    """Centres of `count` equal parts of `length`: (count,)."""
    return (torch.arange(count, device=device) + 0.5) * (length / count)


def _nearest(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (..., h, w) at `height` x `width`, by nearest neighbour."""
    y, x = _centres(height, maps.shape[-2], maps.device).long(), _centres(width, maps.shape[-1], maps.device).long()
    return maps[..., y[:, None], x]


@dataclass(frozen=True)
class SegmentationLosses:
    """For a net whose output is logits (n, classes, h, w) at any resolution; `size` is the images' (height, width)."""

    classes: int
    size: tuple[int, int]
    device: torch.device

    def sample_targets(self, count: int, generator: torch.Generator) -> Tensor:
        """Random label maps (count, *size)."""
        return random_label_maps(count, self.classes, self.size, generator).to(self.device)

    def target_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Pixel cross-entropy of `output` (n, classes, h, w) to maps (n, height, width), a scalar.

        The map goes to the logits' resolution, not the logits to the map's: the maps' cells are coarser than any head's
        grid, while 150 classes at 512x512 would cost 16 times the memory of a stride-4 head for interpolated values.
        """
        return functional.cross_entropy(output, _nearest(target, *output.shape[-2:]))

    def output_distance(self, quantized: Tensor, reference: Tensor) -> Tensor:
        """KL(reference || quantized) in nats, averaged over the pixels of all images."""
        return kl_divergence(*(x.movedim(1, -1).flatten(0, -2) for x in (quantized, reference)))


class DetectionOutput(NamedTuple):
    """What a two-stage detector computes before any non-maximum suppression; every tensor is batch-first.

    A tuple rather than a dataclass, so that torch's pytree functions see its tensors. A cascade's stages are
    concatenated along the boxes: K = stages * k, stage-major.
    """

    objectness: tuple[Tensor, ...]  # per level (n, anchors, h, w), logits
    anchor_deltas: tuple[Tensor, ...]  # per level (n, 4 * anchors, h, w)
    class_logits: Tensor  # (n, K, classes + 1), background last
    box_deltas: Tensor  # (n, K, 4 * classes), class-major, or (n, K, 4) if classes share them
    mask_logits: tuple[Tensor, ...] = ()  # per mask head (n, K, classes, m, m); empty without one


class DenseDetector(Protocol):
    """What an adapter of a detector implements, beside being a module whose forward detects."""

    def dense_forward(self, images: Tensor, boxes: Tensor) -> DetectionOutput:
        """Outputs for normalised images (n, c, height, width), the RoI heads at `boxes` (n, k, 4), xyxy in pixels.

        Differentiable in the images. Its layers are the same module calls as in the detector's own forward, so that
        quantizers found here hold there: sites are keyed by module.
        """


class FixedBoxes(nn.Module):
    """Makes a `DenseDetector` a function of images: its RoI heads look at `boxes` (count, k, 4), not at proposals.

    So the float and the quantized model answer for the same boxes, and no suppression or sorting stands between output
    and image. The boxes belong to the network rather than to the sampled targets, because a method may be handed cached
    images and never sample targets.
    """

    takes_numbers: ClassVar = True  # see `harness.api.images.Numbered`
    boxes: Tensor

    def __init__(self, detector: nn.Module, boxes: Tensor) -> None:
        super().__init__()
        self.detector: Any = detector
        # Not persistent: weights and their hash are the detector's own.
        self.register_buffer("boxes", boxes, persistent=False)

    def forward(self, images: Tensor, numbers: Tensor | None = None) -> DetectionOutput:
        """Image number i is seen at boxes i modulo their count, whatever batch it is in; `numbers` (n,) are the images'
        in their set, 0 to n - 1 without them.
        """
        if numbers is None:
            numbers = torch.arange(len(images), device=images.device)
        return self.detector.dense_forward(images, self.boxes[numbers % len(self.boxes)])  # type: ignore[no-any-return]


class DetectionTarget(NamedTuple):
    """Boxes (n, k, 4), xyxy in pixels, and the class of each (n, k)."""

    boxes: Tensor
    classes: Tensor


def random_boxes(count: int, pairs: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes (count, 2 * pairs, 4), xyxy in pixels, within images of `size`; the second half mirrors the first."""
    height, width = size
    sides = SIDES[0] + (SIDES[1] - SIDES[0]) * torch.rand(count, pairs, 2, generator=generator)
    corner = torch.rand(count, pairs, 2, generator=generator) * (1 - sides)
    found = torch.cat([corner, corner + sides], dim=-1) * torch.tensor([width, height, width, height])
    left, top, right, bottom = found.unbind(-1)
    return torch.cat([found, torch.stack([width - right, top, width - left, bottom], dim=-1)], dim=1)


@dataclass(frozen=True)
class DetectionLosses:
    """For a net whose output is a `DetectionOutput` at `boxes`, drawn by `random_boxes` and given to `FixedBoxes`."""

    classes: int
    size: tuple[int, int]
    boxes: Tensor

    def sample_targets(self, count: int, generator: torch.Generator) -> DetectionTarget:
        """The network's boxes, cycled, each with a random class that its mirror image shares."""
        drawn = torch.randint(self.classes, (count, self.boxes.shape[1] // 2), generator=generator)
        boxes = self.boxes[torch.arange(count, device=self.boxes.device) % len(self.boxes)]
        return DetectionTarget(boxes, drawn.repeat(1, 2).to(boxes.device))

    def target_loss(self, output: DetectionOutput, target: DetectionTarget) -> Tensor:
        """RoI cross-entropy + balanced RPN binary cross-entropy + smooth L1 of the box deltas to zero, a scalar.

        The box itself is the target, so its deltas are zero; only the true class's count. An anchor is positive if the
        centre of its cell lies in a box, whatever its shape; positives and negatives, each pooled over images and
        levels, weigh one half each. Masks have no target: a box says nothing of a shape.
        """
        wanted = target.classes.repeat(1, output.class_logits.shape[1] // target.classes.shape[1])  # stages
        classification = functional.cross_entropy(output.class_logits.flatten(0, 1), wanted.flatten())
        deltas = output.box_deltas.unflatten(-1, (-1, 4))
        if deltas.shape[2] > 1:
            deltas = deltas.take_along_dim(wanted[:, :, None, None], dim=2)
        score = torch.cat([level.flatten() for level in output.objectness])
        inside = torch.cat([self._inside(target.boxes, level).flatten() for level in output.objectness])
        entropy = functional.binary_cross_entropy_with_logits(score, inside.to(score), reduction="none")
        sides = [entropy[inside], entropy[~inside]]  # either may be empty
        proposal = torch.stack([side.sum() / max(1, side.numel()) for side in sides]).mean()
        return classification + proposal + functional.smooth_l1_loss(deltas, torch.zeros_like(deltas))

    def _inside(self, boxes: Tensor, level: Tensor) -> Tensor:
        """Whether each anchor's centre on `level` (n, anchors, h, w) lies in one of its image's boxes (n, k, 4)."""
        y = _centres(level.shape[-2], self.size[0], boxes.device)[:, None]
        x = _centres(level.shape[-1], self.size[1], boxes.device)
        left, top, right, bottom = boxes[..., None, None].unbind(2)
        inside = ((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any(1)
        return inside[:, None].expand_as(level)

    def output_distance(self, quantized: DetectionOutput, reference: DetectionOutput) -> Tensor:
        """KL of the RoI classes (nats, mean over boxes) + mean over the other terms of their relative error, a scalar.

        The other terms are objectness, anchor deltas, box deltas and masks if any: mean |quantized - reference| over
        the reference's mean absolute deviation from its mean. So a model that always answers with the mean is at 1 in
        every term, whatever its unit, and KL is of that order.
        """
        kl = kl_divergence(quantized.class_logits.flatten(0, 1), reference.class_logits.flatten(0, 1))
        pairs = [
            (quantized.objectness, reference.objectness),
            (quantized.anchor_deltas, reference.anchor_deltas),
            ((quantized.box_deltas,), (reference.box_deltas,)),
            (quantized.mask_logits, reference.mask_logits),
        ]
        return kl + torch.stack([_relative_error(q, r) for q, r in pairs if r]).mean()


def _relative_error(quantized: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> Tensor:
    q, r = (torch.cat([t.flatten() for t in tensors]) for tensors in (quantized, reference))
    spread = (r - r.mean()).abs().mean()
    return (q - r).abs().mean() / spread.clamp(min=1e-6)
