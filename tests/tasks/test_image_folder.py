from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from harness.contracts import sealed_data
from harness.errors import DataFreeViolation, UsageError
from tasks.image_folder import ImageFolder, transform_for
from tasks.timm_cls import IMAGENET_MODELS, open_suite
from tasks.timm_models import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
MODEL = "timm:vit_tiny_patch16_224@random"
CLASSES = ("n01", "n02", "n03")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Three classes with 4, 2 and 3 validation images of several sizes and modes, and two training images each."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in (("val", (4, 2, 3)[label]), ("train", 2)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (240 + 17 * i, 300 - 31 * label)
                grey = i % 2 == 1
                pixels = rng.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.{'png' if grey else 'JPEG'}")
    return root


@pytest.fixture
def root(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture(scope="module")
def suite(original):
    return open_suite("imagenet", data_root=original)


@pytest.fixture(scope="module")
def model(suite):
    return suite.load(MODEL, CPU)


def test_own_models_are_timm_names(suite):
    assert tuple(suite.models()) == IMAGENET_MODELS
    assert all(timm.is_model(name.removeprefix("timm:")) for name in IMAGENET_MODELS)


def test_model_takes_the_classes_of_the_data(suite, model):
    assert model.num_classes == len(CLASSES) == suite.data.classes
    assert model.input_shape == (3, 224, 224)
    assert model.mean == model.net.pretrained_cfg["mean"]


def test_evaluation_and_limit(suite, model):
    everything = suite.evaluate(model, model.net, None)
    assert everything.outcomes["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 0]
    assert everything.outcomes["index"].tolist() == list(range(9))
    assert everything.outcomes["correct"].dtype == bool
    assert everything.metrics["top1"] == pytest.approx(100 * everything.outcomes["correct"].mean())
    first = suite.evaluate(model, model.net, 4)
    pd.testing.assert_frame_equal(first.outcomes, everything.outcomes[:4])
    for limit in (0, -1, 10):
        with pytest.raises(UsageError, match="9 evaluation images"):
            suite.evaluate(model, model.net, limit)


def test_preprocessing_equals_timm(original):
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=1)
    expected = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    with Image.open(original / "val" / "n01" / "n01_0.JPEG") as image:
        assert torch.equal(transform_for(Preprocessing.of(net))(image), expected(image))


def test_calibration_comes_from_train_without_repetition(suite, model, original):
    drawn = suite.calibration(model).images(6, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 3, 224, 224)
    transform = transform_for(Preprocessing.of(model.net))
    pool = [transform(Image.open(p).convert("RGB")) for p in sorted((original / "train").rglob("*.*"))]
    matches = [[torch.equal(a, b) for b in pool].index(True) for a in drawn]
    assert sorted(matches) == list(range(6))
    with pytest.raises(UsageError, match="1 to 6"):
        suite.calibration(model).images(7, torch.Generator())


def test_data_are_sealed(suite, model):
    data = suite.calibration(model)
    with sealed_data("mine"):
        with pytest.raises(DataFreeViolation, match="mine"):
            suite.calibration(model)
        with pytest.raises(DataFreeViolation):
            data.images(1, torch.Generator())
        with pytest.raises(DataFreeViolation):
            suite.evaluate(model, model.net, 1)
        with pytest.raises(DataFreeViolation):
            next(suite.data.evaluation(model, 1))
        with pytest.raises(DataFreeViolation):
            suite.data.calibration(model, [0])


def test_identity_follows_names_and_sizes(root):
    before = ImageFolder(root).identity()
    assert ImageFolder(root).identity() == before
    (root / "val" / "n01" / "n01_0.JPEG").rename(root / "val" / "n01" / "renamed.JPEG")
    assert ImageFolder(root).identity() != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda r: shutil.rmtree(r / "val"), "has no folder val/"),
        (lambda r: shutil.rmtree(r / "train"), "has no folder train/"),
        (lambda r: [shutil.rmtree(r / "val" / c) for c in CLASSES], "no class folders"),
        (lambda r: shutil.rmtree(r / "train" / "n02"), "different classes: 'n02'"),
        (lambda r: [p.unlink() for p in (r / "val").rglob("*.*")], "holds no images"),
        (lambda r: [p.unlink() for p in (r / "train").rglob("*.*")], "holds no images"),
    ],
)
def test_unusable_root_gets_a_sentence(root, damage, message):
    damage(root)
    with pytest.raises(UsageError, match=message):
        open_suite("imagenet", data_root=root)


def test_root_is_required():
    with pytest.raises(UsageError, match="data root"):
        open_suite("imagenet")


@pytest.mark.parametrize("images_per_worker", [200, 1])
def test_broken_image_is_named(root, images_per_worker, monkeypatch):
    monkeypatch.setattr("tasks.image_folder._IMAGES_PER_WORKER", images_per_worker)
    (root / "val" / "n01" / "n01_0.JPEG").write_bytes(b"no image")
    suite = open_suite("imagenet", data_root=root)
    model = suite.load(MODEL, CPU)
    with pytest.raises(UsageError, match=r"^image .*n01_0\.JPEG cannot be read"):
        suite.evaluate(model, model.net, 1)


def test_worker_processes_change_nothing(suite, model, monkeypatch):
    plain = suite.evaluate(model, model.net, 4).outcomes
    monkeypatch.setattr("tasks.image_folder._IMAGES_PER_WORKER", 2)
    pd.testing.assert_frame_equal(suite.evaluate(model, model.net, 4).outcomes, plain)


def test_pretrained_model_of_other_classes_is_refused(suite, monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: real(name, **kw))
    with pytest.raises(UsageError, match="knows 1000 classes, but the data have 3"):
        suite.load("timm:vit_tiny_patch16_224", CPU)


def test_offline_pretrained_model_gets_a_sentence(suite, monkeypatch):
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("cannot find the requested files\nin the local cache")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"cannot be had .*timm:vit_tiny_patch16_224@FILE") as caught:
        suite.model_identity("timm:vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def test_bare_timm_name_gets_a_hint(suite):
    with pytest.raises(UsageError, match="did you mean timm:deit_tiny_patch16_224"):
        suite.load("deit_tiny_patch16_224", CPU)


class _Logits:
    """Answers with fixed logits, so that metrics are known."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


def test_nan_never_scores(suite, model):
    logits = torch.zeros(9, 3)
    logits[torch.arange(9), torch.tensor([0, 1, 2, 0, 1, 2, 0, 2, 0])] = 1.0
    assert suite.evaluate(model, _Logits(logits), None).metrics == {"top1": 100.0}
    logits[3] = float("nan")
    result = suite.evaluate(model, _Logits(logits), None)
    assert result.metrics["top1"] == pytest.approx(800 / 9)
    assert result.outcomes["prediction"][3] == -1
