"""What suites of detection and segmentation share: models of OpenMMLab's configs, images of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from harness.api.contracts import CalibrationData, VisionModel
from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.files.draws import drawn
from tasks.models.identity import identity
from tasks.models.openmmlab.data_config import class_names, image_pipeline
from tasks.models.openmmlab.references import Models

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

Split = Literal["evaluation", "calibration"]
Batch = tuple["Tensor", list[Any]]  # normalised images (n, c, height, width) on the model's device, and their samples
PICTURES = 4  # evaluation images that are drawn


class DenseData(Protocol):
    """Images of a dense task. Calibration images are training images; their annotations are never read.

    Methods raise UsageError for what cannot be used.
    """

    classes: tuple[str, ...] | None  # None: what the model's config says
    batch: int  # evaluation images of one size that stand together

    def count(self, split: Split) -> int:
        """Number of images."""

    def identity(self) -> str:
        """Revision of evaluation images and annotations."""

    def calibration_identity(self) -> str:
        """Revision of calibration images; empty if `identity` covers them. Raises UsageError if there are none."""

    def input_size(self, config: Config) -> tuple[int, int]:
        """Height and width of the images that methods synthesize for a model of `config`."""

    def reader(self, split: Split, pipeline: Sequence[Mapping[str, Any]]) -> Callable[[int], dict[str, Any]]:
        """Image by number: `inputs` (3, h, w) and the data sample that mm* models want with it."""

    def check_model(self, model: str, facts: Facts, *, masks: bool) -> None:
        """Check once that annotations can be compared with a model's predictions, and `masks` with its masks.

        Raises:
            UsageError: they cannot; the message says which.
        """

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Evaluation image (height, width, 3), RGB."""


@dataclass(frozen=True)
class Facts:
    """What of a model's config its evaluation depends on: `VisionModel.facts` of both tasks."""

    classes: tuple[str, ...]
    pipeline: tuple[Mapping[str, Any], ...]
    zero_is_none: bool = False  # label 0 of annotations is not a class
    # Classes of label maps by label, where the config names others than its data set has; those that it leaves out do
    # not count. No part of what models were identified by before there was one.
    labels: tuple[str, ...] | None = field(default=None, repr=False)


@dataclass
class DenseSuite:
    """Base of the two tasks' suites."""

    name: str
    data: Any  # DenseData with what the task needs of truth
    known: Models
    task: str = ""
    primary_metric: str = ""
    parts: tuple[str, ...] = ("backbone",)
    _identities: dict[str, str] = field(default_factory=dict)

    def models(self) -> Sequence[str]:
        """Names of the suite's own models, but for those that nobody publishes weights of."""
        return tuple(name for name, known in self.known.known.items() if known.has_weights)

    def model_identity(self, model: str) -> str:
        """Hash of config, weights and what is done to images."""
        if model not in self._identities:
            self._load(model)
        return self._identities[model]

    def canonical_name(self, model: str) -> str:
        """See `Models.canonical_name`."""
        return self.known.canonical_name(model, self.model_identity(model))

    def check_limit(self, limit: int | None) -> None:
        """Raise UsageError unless there are `limit` evaluation images."""
        available = self.data.count("evaluation")
        if limit is not None and not 1 <= limit <= available:
            raise UsageError(f"limit {limit} is not between 1 and the {available} evaluation images of '{self.name}'")

    def data_identity(self) -> str:
        """Revision of the data, 16 hexadecimal digits."""
        return str(self.data.identity())

    def calibration_identity(self) -> str:
        """Revision of the training images, 16 hexadecimal digits; empty if that of the data covers them."""
        return str(self.data.calibration_identity())

    def calibration(self, model: VisionModel) -> CalibrationData:
        """Training images for `model`, on its device."""
        check_not_sealed("calibration images")
        return _Calibration(self, model)

    def batches(self, model: VisionModel, split: Split, indices: Iterable[int]) -> Iterator[Batch]:
        """Images as the model's own preprocessing makes them; those of one batch have one size."""
        read = self.data.reader(split, model.facts.pipeline)
        waiting = list(indices)
        while waiting:
            items = [read(index) for index in waiting[: self.data.batch]]
            del waiting[: self.data.batch]
            given = {"inputs": [i["inputs"] for i in items], "data_samples": [i["data_samples"] for i in items]}
            ready = preprocessor(model.net)(given, False)
            yield ready["inputs"], ready["data_samples"]

    def _load(self, model: str) -> tuple[Config, nn.Module, Facts]:
        """The model, and note its identity: its files may be other ones than the last time."""
        config, net = self.known.load(model)
        named = class_names(config, self.known.library) or self.data.classes
        count = self.count_classes(net, model)
        if named is None or len(named) != count:
            have = "no class names" if named is None else f"{len(named)} classes"
            raise UsageError(f"model '{model}' tells {count} classes apart, but its config or the data have {have}")
        facts = Facts(named, tuple(image_pipeline(config)), **self.label_facts(config))
        self.data.check_model(model, facts, masks=self.makes_masks(net))
        described = {"model": repr(config.model.to_dict()), "facts": repr(facts)}
        if facts.labels is not None:
            described["labels"] = repr(facts.labels)
        self._identities[model] = identity(described, net)
        return config, net, facts

    def handed_over(self, model: str, net: Any, size: tuple[int, int], losses: Any, facts: Facts) -> VisionModel:
        """A wrapped network as methods get it, with the task's pseudo-targets and losses."""
        mean, std = normalisation(net)
        return VisionModel(
            name=model,
            task=self.task,
            net=net,
            input_shape=(3, *size),
            num_classes=losses.classes,
            sample_targets=losses.sample_targets,
            target_loss=losses.target_loss,
            output_distance=losses.output_distance,
            parts=net.parts,
            facts=facts,
            mean=mean,
            std=std,
        )

    def count_classes(self, net: nn.Module, model: str) -> int:
        """Classes that `net` tells apart. Raises UsageError if it is not a model of this task."""
        raise NotImplementedError

    def label_facts(self, config: Config) -> dict[str, Any]:
        """What `Facts` are to have of label maps."""
        return {}

    def makes_masks(self, net: nn.Module) -> bool:
        """Whether `net` makes a mask of every object."""
        return False


def preprocessor(net: Any) -> Any:
    """OpenMMLab's preprocessor of a wrapped model."""
    return (net.segmentor if hasattr(net, "segmentor") else net.detector.net).data_preprocessor


def normalisation(net: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the wrapped model's preprocessor, for pixels from 0 to 1."""
    made = preprocessor(net)
    if not getattr(made, "_enable_normalize", False):
        return (0.0,) * 3, (1 / 255,) * 3
    mean, std = (tuple((values.flatten() / 255).tolist()) for values in (made.mean, made.std))
    return mean, std


def in_one(images: Sequence[Tensor]) -> Tensor:
    """Images (1, c, h, w) of several sizes as one tensor, with zeros (the mean colour) to the right and below."""
    height, width = (max(image.shape[axis] for image in images) for axis in (2, 3))
    return torch.cat(
        [torch.nn.functional.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in images]
    )


@dataclass(frozen=True)
class _Calibration:
    """Draws training images without replacement."""

    suite: DenseSuite
    model: VisionModel

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` distinct normalised images (count, channels, height, width) on the model's device."""
        chosen = drawn(count, self.suite.data.count("calibration"), generator)
        return in_one(
            [image for index in chosen for image, _ in self.suite.batches(self.model, "calibration", [index])]
        )
