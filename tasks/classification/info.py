"""What the classification task says of itself. Imports no torch, so that listing tasks is instant."""

from __future__ import annotations

from harness.api.plugins import Metric, TaskInfo
from tasks.models.families import families

INFO = TaskInfo(
    name="classification",
    summary="image classification with timm's networks; top-1 accuracy in points",
    suites={
        "embedded": "2,000 Fashion-MNIST test images and two trained models that come with the project; no download",
        "cifar10": "CIFAR-10's 10,000 test images and two trained models; downloaded once, or --data-root DIR",
        "imagenet": "ImageNet-1k or any data in its folder layout (DIR/train, DIR/val); needs --data-root DIR",
        "tiny": "tiny networks with random weights and random images, to check plugins; its numbers mean nothing",
    },
    first_look={"embedded": 1000},
    target="tasks.classification.suite:open_suite",
    metrics=(Metric("top1", "top-1 accuracy", "%"),),
    outcomes=("label", "prediction", "correct", "confidence"),
    models={
        "vit": "embedded: VisionTransformer, 6 blocks of width 128, patch 4, 1x32x32 input; cifar10: 12 blocks, "
        "convolutional stem, no class token, 3x32x32 input",
        "swin": "embedded: SwinTransformer, 2+4 blocks of width 48 and 96, patch 2, window 4, 1x32x32 input; cifar10: "
        "2+4+2 blocks of width 64 to 256, convolutional stem, 3x32x32 input",
        "efficientvit": "embedded, if it is named: MIT's EfficientViT, ReLU linear attention, widths 8 to 32",
        "vim": "embedded, if it is named: VisionMamba, 3 blocks of width 48, patch 4, 1x32x32 input",
        "timm:NAME": "imagenet: any pretrained classifier of timm by name; downloads the weights once",
        "timm:NAME@FILE": "any suite: the same architecture with the weights in FILE (.safetensors, .pth, .pt ...), "
        "perhaps with its preprocessing, classes or choice of weights in brackets: FILE[crop_pct=0.9,weights=raw]",
        "timm:NAME@random": "any suite: the same architecture with random weights (fixed seed), to try things out",
        # The smallest of each family, and what can be done with it and its kin.
        **{f"timm:{f.example}": f"{f.family} ({f.models} of timm's names): {f.said}" for f in families()},
    },
)
