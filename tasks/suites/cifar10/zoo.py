"""The trained models of the CIFAR-10 suite."""

from __future__ import annotations

from pathlib import Path

from tasks.models.classifier_zoo import ClassifierZoo
from tasks.suites.cifar10.architectures import CLASSES, build
from tasks.suites.cifar10.dataset import INPUT

HEAD = """# CIFAR-10 zoo

Transformers of timm behind a convolutional stem, trained from scratch on the 50,000 training images of CIFAR-10 by
`nox -s zoo -- cifar10` (`train.py`), kept as fp16 safetensors. They exist to be quantized in a benchmark;
they are good for nothing else. Nothing was selected on test images: the weights are those of the last training step.
The test accuracy in the learning curves was only watched. This file is made from the JSON cards beside it.
"""

ZOO = ClassifierZoo(
    folder=Path(__file__).parent / "weights",
    names=("vit", "swin"),
    build=build,
    input=INPUT,
    classes=CLASSES,
    trained_on="CIFAR-10, 50,000 training images (Krizhevsky 2009), recompressed as JPEG",
    head=HEAD,
    command="nox -s zoo -- cifar10",
)
