"""What the segmentation task says of itself. Imports neither torch nor OpenMMLab, so that listing tasks is instant."""

from __future__ import annotations

from harness.api.plugins import Metric, TaskInfo

INFO = TaskInfo(
    name="segmentation",
    summary="semantic segmentation with mmsegmentation's encoder-decoders; mean IoU in points",
    suites={
        "embedded": "500 scenes of Fashion-MNIST items and two trained UperNets; no download",
        "ade20k": "ADE20K or any data in its layout (DIR/images, DIR/annotations); needs --data-root DIR",
    },
    target="tasks.segmentation.suite:open_suite",
    models={
        "upernet_swin": "embedded: UperNet on a three-stage Swin of width 48, 3x128x128 input",
        "upernet_vit": "embedded: UperNet on a ViT of 8 blocks of width 128, patch 8, 3x128x128 input",
        "upernet_swin_t": "ade20k: UperNet on Swin-T (mmseg); downloads the weights once; upernet_swin_s likewise",
        "upernet_deit_s": "ade20k: UperNet on DeiT-S (mmseg); downloads the weights once",
        "mmseg:CONFIG@FILE": "any suite: the model of any mmseg config (.json, .yaml, .toml; .py with --trust-configs)",
    },
    runs_configs=True,
    metrics=(Metric("miou", "mIoU", "%"),),
    resampling="tasks.metrics.mean_iou:mean_iou_of",
    packages=("mmcv", "mmcv-lite"),  # what mmdet and mmsegmentation are built on
)
