from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from permissions import as_nobody, superuser
from PIL import Image

from harness.api.errors import DataFreeViolation, UsageError
from harness.api.sealing import sealed_data
from tasks.classification.suite import IMAGENET_MODELS, open_suite
from tasks.models.preprocessing import Preprocessing
from tasks.suites.imagenet.dataset import ImageFolder, transform_for

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


def test_k2_preprocessing_goes_into_the_record(suite, model):
    """FAULTS K2 "fine-tuned with other mean/std ...: shown nowhere"."""
    said = model.preprocessing
    assert said["mean"] == [0.5, 0.5, 0.5]
    assert (said["input_shape"], said["crop_pct"]) == ([3, 224, 224], 0.9)
    assert said["from"] == "timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert suite.notices(MODEL) == ()


def test_k2_preprocessing_and_class_order_are_in_a_checkpoints_identity(original, tmp_path):
    """FAULTS K2 "fine-tuned with other mean/std, crop, size or class order"."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=3)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("n03\nn01\nn02\n")
    suite = open_suite("imagenet", data_root=original)
    base = f"timm:test_vit@{tmp_path / 'w.pth'}"
    names = [base, f"{base}[mean=0.4]", f"{base}[crop_pct=0.8]", f"{base}[classes={tmp_path / 'names.txt'}]"]
    assert len({suite.model_identity(name) for name in names}) == 4
    assert len({suite.canonical_name(name) for name in names}) == 4
    assert suite.model_identity(f"{base}[mean=0.5]") == suite.model_identity(base)  # what it is anyway
    assert len(suite.notices(base)) == 1
    plain, ordered = (suite.load(name, CPU) for name in (names[0], names[3]))
    outputs = [suite.evaluate(model, model.net, None).outcomes["prediction"].tolist() for model in (plain, ordered)]
    assert outputs[1] == [{"n03": 2, "n01": 0, "n02": 1}[("n03", "n01", "n02")[output]] for output in outputs[0]]


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


def test_identity_follows_classes_names_and_content(root):
    before = ImageFolder(root).identity(), ImageFolder(root).calibration_identity()
    assert before == (ImageFolder(root).identity(), ImageFolder(root).calibration_identity())
    assert before[0] != before[1]
    (root / "val" / "n01" / "n01_0.JPEG").rename(root / "val" / "n01" / "renamed.JPEG")
    renamed = ImageFolder(root).identity()
    assert renamed != before[0]
    (root / "val" / "n03").rename(root / "val" / "n04")
    assert ImageFolder(root).identity() != renamed


def test_k2_swapped_contents_of_two_class_folders_are_other_data(tmp_path):
    """FAULTS K2 "`.bmp` folder: contents of two class folders swapped": names and sizes are the same."""
    for name, grey in (("n01", 10), ("n02", 200)):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("L", (8, 8), grey).save(tmp_path / "val" / name / "0.bmp")
    before = ImageFolder(tmp_path).identity()
    first, second = (tmp_path / "val" / name / "0.bmp" for name in ("n01", "n02"))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    assert ImageFolder(tmp_path).identity() != before


def test_k2_linked_folders_are_followed_as_by_torchvision(root, tmp_path):
    """FAULTS K2 "`val/c001/more -> DIR`"; links to folders that hold them end."""
    from torchvision.datasets import ImageFolder as Reference

    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name in ("more/a.PNG", "more/deep/b.Jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (root / "val" / "n02" / "more").symlink_to(tmp_path / "more")
    (root / "val" / "n00").symlink_to(tmp_path / "more")
    expected = Reference(str(root / "val"))
    found = ImageFolder(root)
    assert found.class_names == tuple(expected.classes)
    samples = {(str(file.path), file.label) for file in found._evaluation.files}
    assert samples == set(expected.samples)
    assert len(samples) == len(found) == 9 + 4
    (tmp_path / "more" / "loop").symlink_to(root / "val" / "n02")
    (tmp_path / "more" / "self").symlink_to(tmp_path / "more")
    assert {(str(f.path), f.label) for f in ImageFolder(root)._evaluation.files} >= samples


def test_classes_that_differ_in_case_are_two(root):
    """A further member of K2 "class order": letters as classes, `A` and `a`."""
    (root / "val" / "n02").rename(root / "val" / "N01")
    assert ImageFolder(root).class_names == ("N01", "n01", "n03")


@pytest.mark.parametrize("place", ["val/n01/x.png", "val/n04", "val/n01/more", "val"])
def test_k3_k5_dangling_links_are_named(root, place):
    """FAULTS K3 "ln -s /nowhere val/c000/x.png"; as a folder it would have been left out."""
    if place == "val":
        shutil.rmtree(root / "val")
    (root / place).symlink_to("/nowhere")
    with pytest.raises(UsageError, match=rf"^{root}/{place} is a symbolic link to what does not exist"):
        ImageFolder(root)


def test_k5_a_fifo_among_the_images_is_named(root):
    """FAULTS K5 "a FIFO, a device or a link to one"."""
    os.mkfifo(root / "val" / "n01" / "x.png")
    with pytest.raises(UsageError, match=r"x\.png cannot be used: it is a FIFO"):
        ImageFolder(root).identity()
    (root / "val" / "n01" / "x.png").unlink()
    (root / "train" / "n01" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"zero\.png cannot be used: it is a device"):
        ImageFolder(root).calibration_identity()


@superuser
@pytest.mark.parametrize("closed", [".", "val", "val/n01", "val/n01/deeper"])
def test_k5_a_folder_that_may_not_be_read_is_named(closed):
    """FAULTS K5 "folders that may not be read (`--data-root`)"; os.walk would leave it out."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "val" / "n01" / "deeper").mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / "val" / "n01" / "0.png")
        (root / closed).chmod(0)
        try:
            with as_nobody(), pytest.raises(UsageError, match=r"cannot be read: Permission denied$"):
                ImageFolder(root)
        finally:
            (root / closed).chmod(0o755)


@pytest.mark.parametrize("split", ["val", "train"])
def test_k3_a_truncated_jpeg_is_found_before_anything_is_evaluated(root, split):
    """FAULTS K3 "truncated JPEG"."""
    file = root / split / "n01" / "n01_0.JPEG"
    file.write_bytes(file.read_bytes()[:-100])
    (root / split / "n02" / "n02_0.JPEG").write_bytes(b"")
    folder = ImageFolder(root)
    with pytest.raises(UsageError, match=rf"^{file} cannot be used: .*; 1 more in {root / split} cannot either$"):
        folder.identity() if split == "val" else folder.calibration_identity()


def test_k3_val_alone_suffices_unless_a_method_is_given_images(root, model):
    """FAULTS K3 "`--suite imagenet` without `train/`, data-free methods"."""
    shutil.rmtree(root / "train")
    suite = open_suite("imagenet", data_root=root)
    assert len(suite.evaluate(model, model.net, 2).outcomes) == 2
    with pytest.raises(UsageError, match=r"no folder train/, .*--no-references"):
        suite.calibration_identity()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: shutil.rmtree(r / "n02"), "different classes: 'n02'"),
        (lambda r: [p.unlink() for p in r.rglob("*.*")], "holds no images"),
    ],
)
def test_unusable_training_images_get_a_sentence(root, damage, message):
    damage(root / "train")
    with pytest.raises(UsageError, match=message):
        open_suite("imagenet", data_root=root).calibration_identity()


@pytest.mark.parametrize("images_per_worker", [200, 1])
def test_an_image_that_shrinks_after_planning_is_named(root, images_per_worker, model, monkeypatch):
    """A further member of K2 and K3: planned with one file, evaluated with another."""
    monkeypatch.setattr("tasks.suites.imagenet.dataset._IMAGES_PER_WORKER", images_per_worker)
    suite = open_suite("imagenet", data_root=root)
    suite.data_identity()
    file = root / "val" / "n01" / "n01_0.JPEG"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=rf"^image {file} was changed since the run was planned"):
        suite.evaluate(model, model.net, 1)
    file.unlink()
    with pytest.raises(UsageError, match=rf"^image {file} cannot be read: No such file"):
        suite.evaluate(model, model.net, 1)


def test_k2_a_16_bit_png_is_as_its_8_bit_twin(root, model):
    """FAULTS K2 "16-bit PNG in `val`": was white."""
    file = root / "val" / "n01" / "n01_0.JPEG"
    grey = np.random.default_rng(0).integers(0, 256, (240, 240), dtype=np.uint8)
    batches = []
    for pixels in (grey, grey.astype(np.uint16) * 257):
        Image.fromarray(pixels).save(file, format="PNG")
        batches.append(next(open_suite("imagenet", data_root=root).data.evaluation(model, 1))[0])
    assert torch.equal(*batches)
    assert batches[0].std() > 0.1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda r: shutil.rmtree(r / "val"), "has no folder val/"),
        (lambda r: [shutil.rmtree(r / "val" / c) for c in CLASSES], "no class folders"),
        (lambda r: [p.unlink() for p in (r / "val").rglob("*.*")], "holds no images"),
    ],
)
def test_unusable_root_gets_a_sentence(root, damage, message):
    damage(root)
    with pytest.raises(UsageError, match=message):
        open_suite("imagenet", data_root=root)


def test_root_is_required():
    with pytest.raises(UsageError, match="--data-root DIR"):
        open_suite("imagenet")


def test_worker_processes_change_nothing(suite, model, monkeypatch):
    plain = suite.evaluate(model, model.net, 4).outcomes
    monkeypatch.setattr("tasks.suites.imagenet.dataset._IMAGES_PER_WORKER", 2)
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
