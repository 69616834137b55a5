"""What detection and segmentation of scenes need of a training loop: batches, losses and the figure to watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from tasks.files import coco_format as coco
from tasks.metrics.average_precision import average_precision
from tasks.metrics.mean_iou import confusion, mean_iou
from tasks.models.openmmlab.models import build, read_config
from tasks.models.openmmlab.samples import detection_sample, segmentation_sample, to_detections, to_label_map
from tasks.suites.embedded.dense_dataset import CLASS_NAMES, FRAME
from tasks.suites.embedded.scenes import Scene

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class DenseTask(Protocol):
    """One task on scenes, for models of OpenMMLab."""

    def build(self, config: Path, checkpoint: Path | None = None) -> nn.Module:
        """The model of `config`, with the weights of `checkpoint` or fresh ones."""

    def loss(self, net: nn.Module, scenes: Sequence[Scene]) -> Tensor:
        """The config's training loss on `scenes`, a scalar."""

    def evaluate(self, net: nn.Module, scenes: Sequence[Scene]) -> dict[str, float]:
        """Metrics in points, on `net` in eval mode."""


@dataclass(frozen=True)
class Detection:
    """Boxes and masks; `box_ap` and `mask_ap` by COCO's protocol."""

    batch: int = 20  # in evaluation

    def build(self, config: Path, checkpoint: Path | None = None) -> nn.Module:
        """See `DenseTask`."""
        return build("mmdet", read_config(config), checkpoint)

    def loss(self, net: nn.Module, scenes: Sequence[Scene]) -> Tensor:
        """See `DenseTask`."""
        return _loss(net, scenes, [detection_sample(FRAME, scene) for scene in scenes])

    def predict(self, net: nn.Module, scenes: Sequence[Scene]) -> list[coco.Detections]:
        """What `net` finds on `scenes`."""
        found = _predict(net, scenes, [detection_sample(FRAME) for _ in scenes], self.batch)
        return [to_detections(sample) for sample in found]

    def evaluate(self, net: nn.Module, scenes: Sequence[Scene]) -> dict[str, float]:
        """See `DenseTask`."""
        truth = coco.ground_truth(scenes, FRAME, CLASS_NAMES)
        found = self.predict(net, scenes)
        kinds: tuple[tuple[str, Literal["bbox", "segm"]], ...] = (("box", "bbox"), ("mask", "segm"))
        return {
            f"{name}_{key}": value
            for name, kind in kinds
            for key, value in average_precision(truth, found, kind).items()
        }


@dataclass(frozen=True)
class Segmentation:
    """Label maps with background; `miou` over all eleven classes."""

    batch: int = 20  # in evaluation

    def build(self, config: Path, checkpoint: Path | None = None) -> nn.Module:
        """See `DenseTask`."""
        return build("mmseg", read_config(config), checkpoint)

    def loss(self, net: nn.Module, scenes: Sequence[Scene]) -> Tensor:
        """See `DenseTask`."""
        return _loss(net, scenes, [segmentation_sample(FRAME, scene.label_map) for scene in scenes])

    def evaluate(self, net: nn.Module, scenes: Sequence[Scene]) -> dict[str, float]:
        """See `DenseTask`."""
        found = _predict(net, scenes, [segmentation_sample(FRAME) for _ in scenes], self.batch)
        classes = len(CLASS_NAMES) + 1
        confusions = [
            confusion(scene.label_map, to_label_map(sample), classes)
            for scene, sample in zip(scenes, found, strict=True)
        ]
        return {"miou": mean_iou(np.stack(confusions))}


def _inputs(net: Any, scenes: Sequence[Scene], samples: Sequence[Any], *, training: bool) -> tuple[Tensor, list[Any]]:
    """Images (n, 3, SIZE, SIZE) normalised as the config says, and `samples` on the model's device."""
    images = [torch.from_numpy(scene.image) for scene in scenes]
    ready = net.data_preprocessor({"inputs": images, "data_samples": list(samples)}, training)
    return ready["inputs"], ready["data_samples"]


def _loss(net: Any, scenes: Sequence[Scene], samples: Sequence[Any]) -> Tensor:
    total: Tensor
    total, _ = net.parse_losses(net.loss(*_inputs(net, scenes, samples, training=True)))
    return total


@torch.inference_mode()
def _predict(net: Any, scenes: Sequence[Scene], samples: Sequence[Any], batch: int) -> list[Any]:
    found: list[Any] = []
    for first in range(0, len(scenes), batch):
        part = slice(first, first + batch)
        found += net.predict(*_inputs(net, scenes[part], samples[part], training=False))
    return found
