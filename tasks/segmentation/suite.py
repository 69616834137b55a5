"""Adapter of the segmentation task: mmsegmentation's encoder-decoders, mean intersection over union."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.api.contracts import Evaluation, VisionModel
from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.dense.drawing import draw_labels, side_by_side
from tasks.dense.suite import PICTURES, DenseSuite, Facts
from tasks.metrics.mean_iou import IGNORED, class_iou, confusion, mean_iou, segmentation_outcomes
from tasks.models.openmmlab.data_config import check_ignored, label_names, reduces_zero_label
from tasks.models.openmmlab.losses import SegmentationLosses
from tasks.models.openmmlab.nets import SegmentationNet, segment
from tasks.models.openmmlab.references import Known, Models
from tasks.models.openmmlab.samples import to_label_map

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

ADE_MODELS = Models(
    "mmseg",
    {
        "upernet_swin_t": Known("swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"),
        "upernet_swin_s": Known("swin/swin-small-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"),
        "upernet_deit_s": Known("vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py"),
    },
)


def open_suite(suite: str, data_root: Path | None = None, *, trust_configs: bool = False) -> SegmentationSuite:
    """Open `embedded` or `ade20k`.

    Args:
        suite: which of them.
        data_root: folder of its data; `embedded` has its own.
        trust_configs: configs that users name may run code.

    Raises:
        UsageError: no such suite, its data cannot be used, or OpenMMLab is not installed.
    """
    if suite == "embedded":
        if data_root is not None:
            raise UsageError("suite 'embedded' brings its own data and takes no data root; did you mean 'ade20k'?")
        from tasks.suites.embedded.dense_dataset import SceneData
        from tasks.suites.embedded.dense_zoo import known

        return SegmentationSuite(
            suite, SceneData("segmentation"), Models("mmseg", known("segmentation"), trust_configs)
        )
    if suite == "ade20k":
        if data_root is None:
            raise UsageError(
                "suite 'ade20k' needs the images: name the folder ADEChallengeData2016, which holds images/ and "
                "annotations/, with --data-root"
            )
        from tasks.suites.ade20k.dataset import AdeFolder

        return SegmentationSuite(suite, AdeFolder(data_root), replace(ADE_MODELS, trusted=trust_configs))
    raise UsageError(f"segmentation has no suite '{suite}'; it has embedded, ade20k")


@dataclass
class SegmentationSuite(DenseSuite):
    """One data set with the segmentation models that it is run with."""

    task: str = "segmentation"
    primary_metric: str = "miou"

    def load(self, model: str, device: torch.device) -> VisionModel:
        """The float model on `device`."""
        config, segmentor, facts = self._load(model)
        size = self.data.input_size(config)
        net: Any = SegmentationNet(segmentor).to(device)
        losses = SegmentationLosses(len(facts.classes), size, device)
        return self.handed_over(model, net, size, losses, facts)

    def count_classes(self, net: nn.Module, model: str) -> int:
        """Classes of an encoder-decoder with one head, which has a channel for each."""
        from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder

        if not isinstance(net, EncoderDecoder) or isinstance(net, CascadeEncoderDecoder):
            raise UsageError(f"model '{model}' is a {type(net).__name__}; only mmseg's EncoderDecoder is supported")
        classes, channels = net.decode_head.num_classes, net.decode_head.out_channels
        if channels != classes:
            raise UsageError(
                f"the head of model '{model}' has {channels} output channel(s) for {classes} classes; only heads with "
                "a channel for each class are supported"
            )
        return int(classes)

    def label_facts(self, config: Config) -> dict[str, Any]:
        """As the config's data set says."""
        check_ignored(config)
        return {"zero_is_none": reduces_zero_label(config), "labels": label_names(config)}

    def evaluate(self, model: VisionModel, forward: Callable[[Tensor], Any], limit: int | None) -> Evaluation:
        """`miou` over classes that occur or are predicted, in points, and `iou_CLASS` of each of them."""
        check_not_sealed("evaluation images")
        self.check_limit(limit)
        net: Any = model.net
        facts: Facts = model.facts
        names = facts.classes
        count = limit or self.data.count("evaluation")
        confusions: list[np.ndarray] = []
        drawn: dict[str, list[np.ndarray]] = {"truth": [], "prediction": []}
        background = names.index("background") if "background" in names else None
        with torch.inference_mode():
            for images, samples in self.batches(model, "evaluation", range(count)):
                for sample in segment(net, forward, images, samples):
                    index = len(confusions)
                    truth = self.data.label_map(index, facts)
                    predicted = to_label_map(sample)
                    # A broken model must not score by where its NaN happen to lie: there any other class is predicted.
                    broken = sample.seg_logits.data.isnan().any(0).cpu().numpy()
                    wrong = (truth.astype(np.int64) + 1) % len(names)
                    confusions.append(confusion(truth, np.where(broken, wrong, predicted), len(names)))
                    if index < PICTURES:
                        image = self.data.picture(index)
                        for kind, labels in (("truth", truth), ("prediction", predicted)):
                            shown = np.where(labels == IGNORED, -1, labels.astype(np.int64))
                            drawn[kind].append(draw_labels(image, shown, names, background))
        stacked = np.stack(confusions)
        scores = zip(names, class_iou(stacked), strict=True)
        metrics = {"miou": mean_iou(stacked), **{f"iou_{name}": float(x) for name, x in scores if not np.isnan(x)}}
        pictures = {kind: side_by_side(pictures) for kind, pictures in drawn.items()}
        return Evaluation(metrics, segmentation_outcomes(stacked), pictures)
