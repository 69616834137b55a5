"""mmdet and mmseg models as methods see them: networks from normalised images to tensors, without post-processing.

Both are called layer by layer as the models themselves call them, so that quantizers found on the tensors hold where
detections are made. Importing this module imports nothing of OpenMMLab.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tasks.models.attention import unfused
from tasks.models.openmmlab.losses import DetectionOutput, FixedBoxes

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample


class SegmentationNet(nn.Module):
    """Logits (n, classes, h, w) of an mmseg `EncoderDecoder` for images (n, c, height, width).

    They have the resolution of its decode head, of which it is to be one.

    Args:
        segmentor: the model with its weights loaded. It is changed: eval mode, and without its auxiliary heads, which
            are for training only.
    """

    parts: ClassVar = {"backbone": "segmentor.backbone"}

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        own: Any = segmentor
        own.auxiliary_head = None
        self.segmentor: Any = own
        _make_ready(self)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.segmentor.decode_head(self.segmentor.extract_feat(images))  # type: ignore[no-any-return]


def segment(
    net: SegmentationNet, forward: Callable[[Tensor], Tensor], images: Tensor, samples: Sequence[SegDataSample]
) -> list[SegDataSample]:
    """`samples` of normalised `images` with the label maps that mmseg makes of the logits of `forward`, as its
    `predict` does: sliding windows if the config asks for them, scaled to the size that images had before scaling.

    Args:
        net: the float network, whose config counts.
        forward: `net` or a quantized copy.
        images: (n, c, height, width).
        samples: one for each image.
    """
    segmentor = copy.copy(net.segmentor)  # shares all modules; only the method below differs

    def encode_decode(crop: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        return segmentor.decode_head.predict_by_feat(forward(crop), metas)  # type: ignore[no-any-return]

    segmentor.encode_decode = encode_decode
    return segmentor.predict(images, list(samples))  # type: ignore[no-any-return]


class DetectionNet(FixedBoxes):
    """The `DetectionOutput` of an mmdet `TwoStageDetector` at `boxes`; with `samples`, what it detects.

    Args:
        detector: the model with its weights loaded: Faster or Mask R-CNN, or a cascade of these. It is changed.
        boxes: (count, k, 4), xyxy in pixels, at which the RoI heads look; see `FixedBoxes`.
    """

    parts: ClassVar = {"backbone": "detector.net.backbone"}

    def __init__(self, detector: nn.Module, boxes: Tensor) -> None:
        super().__init__(_TwoStage(detector), boxes)
        _make_ready(self)

    def forward(
        self, images: Tensor, numbers: Tensor | None = None, samples: Sequence[DetDataSample] | None = None
    ) -> Any:
        """See `FixedBoxes`. Given the images' `samples`, it returns these with what it detects, as mmdet's `predict`
        does; boxes are then in the coordinates of the images before scaling.
        """
        return super().forward(images, numbers) if samples is None else self.detector(images, samples)


class _TwoStage(nn.Module):
    """A `DenseDetector` of mmdet's parts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, images: Tensor, samples: Sequence[DetDataSample]) -> list[DetDataSample]:
        """Detections, with the suppression of the model's config."""
        return self.net.predict(images, list(samples))  # type: ignore[no-any-return]

    def dense_forward(self, images: Tensor, boxes: Tensor) -> DetectionOutput:
        """See `DenseDetector`. All stages of a cascade look at `boxes` as they are: none waits for another's result."""
        features = self.net.extract_feat(images)
        objectness, anchor_deltas = self.net.rpn_head(features)
        count, k = boxes.shape[:2]
        image = torch.arange(count, device=boxes.device, dtype=boxes.dtype).repeat_interleave(k)
        rois = torch.cat([image[:, None], boxes.flatten(0, 1)], dim=1)
        heads = self.net.roi_head
        if isinstance(heads.bbox_head, nn.ModuleList):
            seen = [heads._bbox_forward(stage, features, rois) for stage in range(heads.num_stages)]
            masks = [heads._mask_forward(stage, features, rois) for stage in range(heads.num_stages) if heads.with_mask]
        else:
            seen = [heads._bbox_forward(features, rois)]
            masks = [heads._mask_forward(features, rois)] if heads.with_mask else []
        return DetectionOutput(
            tuple(objectness),
            tuple(anchor_deltas),
            torch.cat([found["cls_score"].unflatten(0, (count, k)) for found in seen], dim=1),
            torch.cat([found["bbox_pred"].unflatten(0, (count, k)) for found in seen], dim=1),
            tuple(found["mask_preds"].unflatten(0, (count, k)) for found in masks),
        )


def _make_ready(net: nn.Module) -> None:
    """As `VisionModel` wants it: eval mode, no gradients, attention not fused."""
    unfused(net).eval().requires_grad_(False)
