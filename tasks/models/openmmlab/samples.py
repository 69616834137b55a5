"""Between plain arrays and the data samples that mmdet and mmseg models take and give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.files.coco_format import Annotated, Detections

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample


def detection_sample(size: tuple[int, int], truth: Annotated | None = None) -> DetDataSample:
    """A sample for an image of `size` (height, width) that was not scaled, with its `truth` for training."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={**_geometry(size), "scale_factor": (1.0, 1.0)})
    if truth is not None:
        found = InstanceData(
            bboxes=torch.as_tensor(truth.boxes, dtype=torch.float32), labels=torch.as_tensor(truth.classes)
        )
        if truth.masks is not None:
            found.masks = BitmapMasks(truth.masks.astype(np.uint8), *size)
        sample.gt_instances = found
    return sample


def segmentation_sample(size: tuple[int, int], truth: NDArray[np.integer] | None = None) -> SegDataSample:
    """A sample for an image of `size` (height, width), with its label map `truth` (h, w) for training."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_geometry(size))
    if truth is not None:
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth, dtype=torch.int64)[None])
    return sample


def _geometry(size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    # What mmdet's and mmseg's preprocessors would note of an image that needs no padding.
    return {"img_shape": size, "ori_shape": size, "pad_shape": size, "batch_input_shape": size}


def to_detections(sample: DetDataSample) -> Detections:
    """The prediction in `sample`, as a detector's `predict` returns it, as arrays on the CPU."""
    found = sample.pred_instances.detach().cpu()
    return Detections(
        boxes=found.bboxes.numpy(),
        classes=found.labels.numpy(),
        scores=found.scores.numpy(),
        masks=found.masks.numpy().astype(bool) if "masks" in found else None,
    )


def to_label_map(sample: SegDataSample) -> NDArray[np.int64]:
    """The predicted class of each pixel (h, w) in `sample`, as a segmentor's `predict` returns it."""
    classes: NDArray[np.int64] = sample.pred_sem_seg.data[0].cpu().numpy()
    return classes
