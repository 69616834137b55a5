"""What the detection task says of itself. Imports neither torch nor OpenMMLab, so that listing tasks is instant."""

from __future__ import annotations

from harness.api.plugins import Metric, TaskInfo

_AP = "%, mean over IoU 0.50 to 0.95"

INFO = TaskInfo(
    name="detection",
    summary="detection with mmdet's two-stage detectors; box AP, and mask AP if they make masks, by COCO's protocol",
    suites={
        "embedded": "500 scenes of Fashion-MNIST items and a trained Mask R-CNN; no download",
        "coco": "COCO 2017 or data in its layout (DIR/annotations, DIR/train2017, DIR/val2017); needs --data-root DIR",
    },
    target="tasks.detection.suite:open_suite",
    models={
        "mask_rcnn_swin": "embedded: Mask R-CNN on a three-stage Swin of width 48, 3x128x128 input",
        "mask_rcnn_swin_t": "coco: Mask R-CNN on Swin-T (3x); downloads the weights once; mask_rcnn_swin_s likewise",
        "cascade_mask_rcnn_swin_s@FILE": "coco: Cascade Mask R-CNN on Swin-S, weights in FILE; ..._swin_t likewise",
        "mmdet:CONFIG@FILE": "any suite: the model of any mmdet config (.json, .yaml, .toml; .py with --trust-configs)",
        "NAME@random": "any suite: any of these with random weights (fixed seed), to try things out",
    },
    runs_configs=True,
    metrics=(Metric("box_ap", "box AP", _AP), Metric("mask_ap", "mask AP", _AP, secondary=True)),
    resampling="tasks.metrics.average_precision:average_precision_of",
    packages=("mmcv", "mmcv-lite"),  # what mmdet and mmsegmentation are built on
)
