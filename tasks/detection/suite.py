"""Adapter of the detection task: mmdet's two-stage detectors, COCO's box and mask AP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from harness.api.contracts import Evaluation, VisionModel
from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.dense.drawing import draw_objects, side_by_side
from tasks.dense.suite import PICTURES, DenseSuite, Facts
from tasks.files import coco_format as coco
from tasks.metrics.average_precision import average_precision, detection_outcomes
from tasks.models.openmmlab.losses import DetectionLosses, random_boxes
from tasks.models.openmmlab.nets import DetectionNet
from tasks.models.openmmlab.references import CONFIGS, Known, Models
from tasks.models.openmmlab.samples import to_detections

BOXES = (32, 8)  # images that have boxes of their own before they repeat, and pairs of mirrored boxes in each
KINDS: Mapping[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}
_CASCADE = "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
COCO_MODELS = Models(
    "mmdet",
    {
        "mask_rcnn_swin_t": Known("swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py"),
        "mask_rcnn_swin_s": Known("swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py"),
        "cascade_mask_rcnn_swin_t": Known(_CASCADE, CONFIGS / "cascade_mask_rcnn_swin_t.py"),
        "cascade_mask_rcnn_swin_s": Known(_CASCADE, CONFIGS / "cascade_mask_rcnn_swin_s.py"),
    },
)


def open_suite(suite: str, data_root: Path | None = None, *, trust_configs: bool = False) -> DetectionSuite:
    """Open `embedded` or `coco`.

    Args:
        suite: which of them.
        data_root: folder of its data; `embedded` has its own.
        trust_configs: configs that users name may run code.

    Raises:
        UsageError: no such suite, its data cannot be used, or OpenMMLab is not installed.
    """
    if suite == "embedded":
        if data_root is not None:
            raise UsageError("suite 'embedded' brings its own data and takes no data root; did you mean 'coco'?")
        from tasks.suites.embedded.dense_dataset import SceneData
        from tasks.suites.embedded.dense_zoo import known

        return DetectionSuite(suite, SceneData("detection"), Models("mmdet", known("detection"), trust_configs))
    if suite == "coco":
        if data_root is None:
            raise UsageError(
                "suite 'coco' needs the images: name a folder that holds annotations/, train2017/ and val2017/ with "
                "--data-root"
            )
        from tasks.suites.coco.dataset import CocoFolder

        return DetectionSuite(suite, CocoFolder(data_root), replace(COCO_MODELS, trusted=trust_configs))
    raise UsageError(f"detection has no suite '{suite}'; it has embedded, coco")


@dataclass
class DetectionSuite(DenseSuite):
    """One data set with the detectors that it is run with."""

    task: str = "detection"
    primary_metric: str = "box_ap"

    def load(self, model: str, device: torch.device) -> VisionModel:
        """The float model on `device`."""
        config, detector, facts = self._load(model)
        size = self.data.input_size(config)
        boxes = random_boxes(*BOXES, size, torch.Generator().manual_seed(0))
        net: Any = DetectionNet(detector, boxes).to(device)
        losses = DetectionLosses(len(facts.classes), size, net.boxes)
        return self.handed_over(model, net, size, losses, facts)

    def count_classes(self, net: nn.Module, model: str) -> int:
        """Classes of a two-stage detector."""
        from mmdet.models.detectors import TwoStageDetector

        if not isinstance(net, TwoStageDetector) or not net.with_rpn:
            raise UsageError(f"model '{model}' is a {type(net).__name__}; only two-stage detectors are supported")
        head: Any = net.roi_head.bbox_head
        first: Any = head[0] if isinstance(head, nn.ModuleList) else head
        return int(first.num_classes)

    def makes_masks(self, net: nn.Module) -> bool:
        """Whether the detector has a mask head."""
        return bool(net.with_mask)

    def check_limit(self, limit: int | None) -> None:
        """Raise UsageError unless there are `limit` evaluation images, with an object on one of them at least."""
        super().check_limit(limit)
        count = limit or self.data.count("evaluation")
        if not self.data.has_objects(count):
            raise UsageError(
                f"no object is annotated on the first {count} evaluation images of '{self.name}', so there is no "
                "average precision; raise --limit"
            )

    def evaluate(self, model: VisionModel, forward: Callable[..., Any], limit: int | None) -> Evaluation:
        """`box_ap` and, if the model makes masks, `mask_ap`: mean over IoU 0.50 to 0.95, with those at 0.50 and 0.75.

        Outcomes are those of boxes; those of masks have columns of the same names that begin with `mask_`.
        """
        check_not_sealed("evaluation images")
        self.check_limit(limit)
        net: Any = model.net
        facts: Facts = model.facts
        count = limit or self.data.count("evaluation")
        found: list[coco.Detections] = []
        drawn: list[coco.Detections] = []  # the first, with their masks as they are
        with torch.inference_mode():
            for images, samples in self.batches(model, "evaluation", range(count)):
                new = [to_detections(sample) for sample in forward(images, samples=samples)]
                drawn += new[: max(0, PICTURES - len(drawn))]
                found += [each.encoded() for each in new]
        truth = self.data.truth(count, facts)
        kinds = {name: kind for name, kind in KINDS.items() if name == "box" or net.detector.net.with_mask}
        metrics = {
            f"{name}_{key}": value
            for name, kind in kinds.items()
            for key, value in average_precision(truth, found, kind).items()
        }
        outcomes = detection_outcomes(truth, found, "bbox")
        if "mask" in kinds:
            masks = detection_outcomes(truth, found, "segm").drop(columns="index")
            outcomes = outcomes.join(masks.add_prefix("mask_"))
        return Evaluation(metrics, outcomes, self._pictures(drawn, truth, facts.classes))

    def _pictures(
        self, found: list[coco.Detections], truth: dict[str, Any], names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        images = [self.data.picture(index) for index in range(len(found))]
        own = {n: [a for a in truth["annotations"] if a["image_id"] == n] for n in range(1, len(found) + 1)}
        listed = [category["name"] for category in truth["categories"]]
        return {
            "truth": side_by_side(
                [
                    draw_objects(image, coco.xyxy(own[n]), [a["category_id"] - 1 for a in own[n]], listed)
                    for n, image in enumerate(images, start=1)
                ]
            ),
            "prediction": side_by_side(
                [
                    draw_objects(image, each.boxes, each.classes, listed, masks=each.masks, scores=each.scores)
                    for image, each in zip(images, found, strict=True)
                ]
            ),
        }
