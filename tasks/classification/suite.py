"""Adapter of the classification task: its suites behind the harness's Suite contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.api.contracts import CalibrationData, Evaluation, VisionModel
from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.classification.corruptions import Corruption
from tasks.files.draws import drawn
from tasks.models.facts import PREFIX, RANDOM, Facts
from tasks.models.identity import identity, identity_of_file
from tasks.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

IMAGENET_MODELS = tuple(
    PREFIX + name
    for name in (
        "deit_tiny_patch16_224",
        "deit_small_patch16_224",
        "deit_base_patch16_224",
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "vit_small_patch16_224",
        "vit_base_patch16_224",
    )
)


OWN = Facts("the suite")  # what is known of a suite's own models


class ImageData(Protocol):
    """Evaluation images and a pool of calibration images; the length is the number of evaluation images."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> Sequence[str]:
        """In the order of labels; empty if the suite's own models are all that know them."""

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""

    def __len__(self) -> int:
        """Number of evaluation images."""

    def identity(self) -> str:
        """Revision of the data."""

    def calibration_identity(self) -> str:
        """Revision of the pool of calibration images; empty if `identity` covers it."""

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images and labels (CPU), the first `count` images, class-interleaved."""

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """Normalised images at `indices` of the pool (CPU)."""


def open_suite(suite: str, data_root: Path | None = None) -> ClassificationSuite:
    """Open `embedded`, `cifar10`, `imagenet` or `tiny`.

    Raises:
        UsageError: no such suite, or its data cannot be used; the message says what is missing.
    """
    if suite in {"embedded", "tiny"} and data_root is not None:
        raise UsageError(f"suite '{suite}' brings its own data and takes no data root; did you mean 'imagenet'?")
    if suite == "embedded":
        from tasks.suites.embedded.dataset import EmbeddedData
        from tasks.suites.embedded.zoo import ZOO

        return ClassificationSuite(
            suite, EmbeddedData(), ZOO.names, ZOO.build_trained, ZOO.input, ZOO.weights, ZOO.further
        )
    if suite == "cifar10":
        from tasks.suites.cifar10 import zoo
        from tasks.suites.cifar10.dataset import CifarData

        own = zoo.ZOO
        return ClassificationSuite(suite, CifarData(data_root), own.names, own.build_trained, own.input, own.weights)
    if suite == "imagenet":
        if data_root is None:
            raise UsageError(
                "suite 'imagenet' needs images; write --data-root DIR, where DIR/val holds one folder per class"
            )
        from tasks.suites.imagenet.dataset import ImageFolder

        return ClassificationSuite(suite, ImageFolder(data_root), IMAGENET_MODELS)
    if suite == "tiny":
        from tasks.suites.tiny import zoo as tiny
        from tasks.suites.tiny.dataset import TinyData

        names, further = tuple(tiny.NETWORKS), tuple(tiny.FURTHER)
        return ClassificationSuite(suite, TinyData(), names, tiny.build, tiny.INPUT, further=further)
    raise UsageError(f"classification has no suite '{suite}'; it has embedded, cifar10, imagenet, tiny")


@dataclass(frozen=True)
class ClassificationSuite:
    """One data set with the models that it is run with, and `further` ones that it has but runs only if they are named.
    `own` builds the models that are not timm's by name, with the weights in the file that `own_weights` names, if they
    have one.
    """

    name: str
    data: ImageData
    own_models: tuple[str, ...]
    own: Callable[[str], nn.Module] | None = None
    fixed: Preprocessing | None = None  # None: every model brings its own preprocessing
    own_weights: Callable[[str], Path] | None = None
    further: tuple[str, ...] = ()
    task: str = "classification"
    primary_metric: str = "top1"
    corruption: Corruption | None = None  # of evaluation images
    _identities: dict[str, str] = field(default_factory=dict)
    _facts: dict[str, Facts] = field(default_factory=dict)

    def models(self) -> Sequence[str]:
        """Names of the suite's own models."""
        return self.own_models

    @property
    def _known(self) -> tuple[str, ...]:
        return (*self.own_models, *self.further)

    def model_identity(self, model: str) -> str:
        """Hash of architecture, weights and preprocessing."""
        if model not in self._identities and not self._identified(model):
            self._build(model)
        return self._identities[model]

    def canonical_name(self, model: str) -> str:
        """`timm:NAME@FILE` with the first eight digits of the model's identity for the file; others as they are."""
        name, separator, weights = model.partition("@")
        if not (model.startswith(PREFIX) and separator) or weights == RANDOM:
            return model
        return f"{name}@{self.model_identity(model)[:8]}"

    def untrained(self, model: str) -> VisionModel | None:
        """A timm model without its weights, or None for one of the suite's own."""
        if not model.startswith(PREFIX):
            return None
        from tasks.models.timm_models import untrained_timm, vision_model

        net, preprocessing = untrained_timm(model, classes=self.data.classes, fixed=self.fixed)
        return vision_model(model, net, preprocessing, next(net.parameters()).device)

    def check_limit(self, limit: int | None) -> None:
        """Raise UsageError unless there are `limit` evaluation images."""
        available = len(self.data)
        if limit is not None and not 1 <= limit <= available:
            raise UsageError(f"limit {limit} is not between 1 and the {available} evaluation images of '{self.name}'")

    def data_identity(self) -> str:
        """Revision of the data, 16 hexadecimal digits."""
        return self.data.identity()

    def calibration_identity(self) -> str:
        """Revision of the training images where it is apart, else empty. Raises UsageError if there are none."""
        return self.data.calibration_identity()

    def notices(self, model: str) -> Sequence[str]:
        """What the user should know of how `model` is used."""
        self.model_identity(model)
        return self._facts[model].notices

    def load(self, model: str, device: torch.device) -> VisionModel:
        """The float model on `device`."""
        from tasks.models.timm_models import vision_model

        net = self._build(model)
        preprocessing = self.fixed or Preprocessing.of(net)
        return vision_model(model, net, preprocessing, device, self._said(model, preprocessing))

    def _said(self, model: str, preprocessing: Preprocessing) -> dict[str, Any]:
        facts = self._facts[model]
        said = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(preprocessing).items()}
        return said | {"from": facts.origin, "classes": facts.classes, "weights": facts.weights}

    def _build(self, model: str) -> nn.Module:
        """The model, and note its identity: its file may be another one than the last time."""
        net, self._facts[model] = self._net(model)
        self._identities[model] = identity(_told(model, self.fixed or Preprocessing.of(net)), net)
        return net

    def _identified(self, model: str) -> bool:
        """Note the identity of one of the suite's own models from its file, without torch; whether that was possible.

        The weights may not fit the network. Whoever loads the model finds out.
        """
        if self.own_weights is None or self.fixed is None or model not in self._known:
            return False
        found = identity_of_file(_told(model, self.fixed), self.own_weights(model))
        if found is not None:
            self._facts[model], self._identities[model] = OWN, found
        return found is not None

    def _net(self, model: str) -> tuple[nn.Module, Facts]:
        if model.startswith(PREFIX):
            from tasks.models.timm_models import build_timm

            names = self.data.class_names
            return build_timm(model, classes=self.data.classes, fixed=self.fixed, class_names=names)
        if self.own is None or model not in self._known:
            hint = (
                f"did you mean {PREFIX}{model}?"
                if PREFIX + model in self.own_models
                else "timm:NAME and timm:NAME@FILE work too"
            )
            raise UsageError(f"suite '{self.name}' has no model '{model}'; it has {', '.join(self._known)}; {hint}")
        return self.own(model), OWN

    def calibration(self, model: VisionModel) -> CalibrationData:
        """Training images for `model`, on its device."""
        check_not_sealed("calibration images")
        return _Calibration(self.data, model)

    def corrupted(self, corruption: str) -> ClassificationSuite:
        """The same suite whose evaluation images are corrupted, `NAME:SEVERITY`; calibration images stay as they are.

        Raises:
            UsageError: no such corruption.
        """
        return replace(self, corruption=Corruption.parse(corruption))

    def evaluate(self, model: VisionModel, forward: Callable[[Tensor], Any], limit: int | None) -> Evaluation:
        """Top-1 of `forward` in points, with top-5 where there are more than ten classes."""
        import pandas as pd
        import torch

        check_not_sealed("evaluation images")
        self.check_limit(limit)
        parts: list[Tensor] = []  # per batch (b, 3): label, prediction, is it among the first five
        confidences: list[Tensor] = []
        with torch.inference_mode():
            done = 0
            for clean, labels in self.data.evaluation(model, limit or len(self.data)):
                images = clean if self.corruption is None else self.corruption(clean, model, done)
                done += len(images)
                logits = forward(images.to(model.device)).float().cpu()
                # A broken model must not score by where its NaN happen to lie.
                broken = logits.isnan().any(1)
                top5 = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None]).any(1) & ~broken
                parts.append(torch.stack([labels, logits.argmax(1).masked_fill(broken, -1), top5], dim=1))
                confidences.append(logits.softmax(1).amax(1).masked_fill(broken, 0.0))
        label, prediction, top5 = torch.cat(parts).numpy().T
        correct = label == prediction
        metrics = {"top1": 100.0 * float(correct.mean())}
        if self.data.classes > 10:
            metrics["top5"] = 100.0 * float(top5.mean())
        outcomes = pd.DataFrame(
            {"index": range(len(label)), "label": label, "prediction": prediction, "correct": correct}
        )
        outcomes["confidence"] = torch.cat(confidences).numpy()
        return Evaluation(metrics, outcomes)


def _told(model: str, preprocessing: Preprocessing) -> list[Any]:
    """What makes a model's outputs beside its weights. Where these lie does not matter, only what they are."""
    return [model.partition("@")[0], asdict(preprocessing)]


@dataclass(frozen=True)
class _Calibration:
    """Draws training images without replacement."""

    data: ImageData
    model: VisionModel

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` distinct normalised images (count, channels, height, width) on the model's device."""
        chosen = drawn(count, self.data.calibration_size, generator)
        return self.data.calibration(self.model, chosen).to(self.model.device)
