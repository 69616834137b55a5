"""The trained classifiers of the embedded suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.models.classifier_zoo import ClassifierZoo
from tasks.models.preprocessing import Preprocessing
from tasks.suites.embedded.architectures import CLASSES, IMAGE_SIZE, MEAN, STD, build

if TYPE_CHECKING:
    from torch import nn

INPUT = Preprocessing(input_shape=(1, IMAGE_SIZE, IMAGE_SIZE), mean=MEAN, std=STD)


def _embedded_accuracy(net: nn.Module) -> float:
    """Top-1 on the embedded evaluation images, in percent."""
    import torch

    from tasks.models.timm_models import vision_model
    from tasks.suites.embedded.dataset import EmbeddedData

    data = EmbeddedData()
    model = vision_model("card", net, INPUT, torch.device("cpu"))
    with torch.inference_mode():
        hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in data.evaluation(model, len(data)))
    return 100.0 * hits / len(data)


HEAD = """# Embedded zoo

Small timm transformers, and a Vision Mamba (`vim`), trained from scratch on the 60,000 training images of Fashion-MNIST
by `nox -s zoo` (`train.py`), kept as fp16 safetensors. They exist to be quantized in a benchmark; they are good for
nothing else. Nothing was selected on test images: the weights are those of the last training step. The test accuracy
in the learning curves was only watched. This file is made from the JSON cards beside it.
"""

ZOO = ClassifierZoo(
    folder=Path(__file__).parent / "weights",
    names=("vit", "swin"),
    further=("efficientvit", "vim"),
    build=build,
    input=INPUT,
    classes=CLASSES,
    trained_on="Fashion-MNIST, 60,000 training images (MIT licence, Zalando Research)",
    head=HEAD,
    command="nox -s zoo -- classification",
    watched={"top1_embedded_test": ("embedded 2,000 test images", _embedded_accuracy)},
)
