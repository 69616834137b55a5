"""The CIFAR-10 suite: both forms of the data, the stem, training; the real images only where they lie."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import pickle
import sys
import tempfile
from functools import partial
from http.client import IncompleteRead
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from permissions import as_nobody, superuser
from PIL import Image

from harness.api.errors import DataFreeViolation, UsageError
from harness.api.sealing import sealed_data
from tasks.classification.suite import open_suite
from tasks.suites.cifar10 import dataset as cifar
from tasks.suites.cifar10 import train as training
from tasks.suites.cifar10.architectures import build, fold
from tasks.suites.cifar10.dataset import ORIGINAL, PACKED, CifarData, normalise
from tasks.suites.cifar10.train import augment
from tasks.suites.cifar10.zoo import ZOO
from tasks.training import cli as zoo_cli

CPU = torch.device("cpu")
REAL = Path(__file__).parents[3] / "shared" / "data"
TRAINING, TEST = 60, 30


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(TRAINING + TEST) % 10)
    images = rng.integers(0, 60, (TRAINING + TEST, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 4, :, label % 3] += 180  # a coloured bar whose height is the class
    return images, labels


@pytest.fixture(scope="module")
def packed(pixels, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    write_packed(root / PACKED, *pixels)
    return root


def write_packed(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        files.append(stream.getvalue())
    np.savez(
        file,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        label=labels.astype(np.uint8),
        train=np.arange(len(images)) < TRAINING,
        classes=np.array([str(i) for i in range(10)]),
    )


@pytest.fixture
def original(pixels, tmp_path, monkeypatch):
    """The folder as torchvision reads it, with its own checksums."""
    from torchvision.datasets import CIFAR10

    images, labels = pixels
    folder = tmp_path / ORIGINAL
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(part: slice) -> dict:
        rows = images[part].transpose(0, 3, 1, 2).reshape(len(images[part]), -1)
        return {"data": rows, "labels": labels[part].tolist()}

    halves = [slice(0, TRAINING // 2), slice(TRAINING // 2, TRAINING)]
    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(p)) for i, p in enumerate(halves, 1)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(slice(TRAINING, None)))])
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


# --- data


def test_both_forms_hold_the_same_images(packed, original, pixels):
    images, labels = pixels
    for root in (packed, original):
        data = CifarData(root)
        assert (len(data), data.calibration_size) == (TEST, TRAINING)
        assert torch.equal(data.calibration(None, [3, 1]), normalise(images[[3, 1]]))
        seen = list(data.evaluation(None, TEST))
        found = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
        assert found[0].shape == (TEST, 3, 32, 32)
        for x, y in zip(*found, strict=True):
            index = next(i for i in range(TRAINING, len(labels)) if torch.equal(normalise(images[i : i + 1])[0], x))
            assert labels[index] == y
        assert len(found[0].flatten(1).unique(dim=0)) == TEST


def test_any_first_part_is_as_balanced_as_can_be(packed):
    labels = torch.cat([y for _, y in CifarData(packed).evaluation(None, TEST)])
    available = labels.bincount(minlength=10)
    for count in range(1, TEST):
        taken = labels[:count].bincount(minlength=10)
        # Only a class with no more images may be behind.
        assert taken.max() - taken[taken < available].min() <= 1


def test_normalised_images_have_the_usual_statistics():
    image = np.full((1, 32, 32, 3), 255, np.uint8)
    expected = [(1 - m) / s for m, s in zip((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), strict=True)]
    assert normalise(image)[0, :, 5, 7].tolist() == pytest.approx(expected)


def test_identity_follows_the_pixels(packed, pixels, tmp_path):
    images, labels = pixels
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    write_packed(tmp_path / PACKED, changed, labels)
    assert CifarData(packed).identity() == CifarData(packed).identity() != CifarData(tmp_path).identity()


def test_sealed_data_raise(packed):
    data = CifarData(packed)
    with sealed_data("mine"):
        for access in (lambda: next(data.evaluation(None, 1)), lambda: data.calibration(None, [0])):
            with pytest.raises(DataFreeViolation, match="mine"):
                access()


def test_missing_or_damaged_data_get_a_sentence(packed, original, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "default_root", lambda: tmp_path / "cache")
    for root in (tmp_path / "nowhere", None):
        with pytest.raises(UsageError, match=r"finds neither .* name their folder with --data-root, or download"):
            open_suite("cifar10", root)
    (original / ORIGINAL / "data_batch_2").write_bytes(b"cut")
    with pytest.raises(UsageError, match="incomplete or damaged"):
        open_suite("cifar10", original)
    content = (packed / PACKED).read_bytes()
    for keep in (0, 100, len(content) // 2):
        (tmp_path / PACKED).write_bytes(content[:keep])
        with pytest.raises(UsageError, match="is damaged"):
            open_suite("cifar10", tmp_path)


def _small(images: list[bytes]) -> list[bytes]:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "PNG")
    return [*images[:-1], stream.getvalue()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: [*images[:-1], images[-1][:-40]], "image 89 in it is damaged"),
        (lambda images: [*images[:7], b"no image", *images[8:]], "image 7 in it is damaged"),
        (_small, r"image 89 in it is damaged \(it has 16x16 pixels\)"),
        (lambda images: [*images[:-1], b""], "its images do not follow one another"),
    ],
)
def test_k3_a_damaged_image_in_the_packed_file_is_found_when_it_is_opened(pixels, packed, tmp_path, change, message):
    """A further member of FAULTS K3 "truncated JPEG": found while evaluating, or never."""
    with np.load(packed / PACKED) as stored:
        arrays = dict(stored)
    offsets = arrays["offsets"].tolist()
    raw = arrays["jpeg"].tobytes()
    images = change([raw[a:b] for a, b in pairwise(offsets)])
    arrays |= {"jpeg": np.frombuffer(b"".join(images), np.uint8), "offsets": np.cumsum([0, *map(len, images)])}
    np.savez(tmp_path / PACKED, **arrays)
    with pytest.raises(UsageError, match=message):
        CifarData(tmp_path)


def test_k2_labels_that_are_no_classes_are_refused(pixels, tmp_path):
    """A further member of K2: they would have counted as wrong answers."""
    images, labels = pixels
    write_packed(tmp_path / PACKED, images, labels + 1)
    with pytest.raises(UsageError, match="its labels are not 0 to 9"):
        CifarData(tmp_path)


@superuser
def test_k5_a_data_root_that_may_not_be_read_gets_a_sentence():
    """FAULTS K5 "folders that may not be read (`--data-root`)"."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0)
        with as_nobody(), pytest.raises(UsageError, match="cannot be read: Permission denied"):
            CifarData(Path(name))


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), IncompleteRead(b"half"), RuntimeError("File not found or corrupted.")]
)
def test_a_failed_download_is_one_sentence(error, monkeypatch, capsys, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    for command in (
        partial(cifar.main, []),
        partial(zoo_cli.main, ["vit", "--download", "--work", str(tmp_path)]),
        partial(zoo_cli.main, ["cifar10", "--download", "--work", str(tmp_path)]),
    ):
        with pytest.raises(SystemExit) as caught:
            command()
        assert caught.value.code == 2
        assert "cannot be downloaded" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        cifar.main(["--data-root", str(tmp_path)])


def test_folders_of_training_that_cannot_be_are_one_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    for option in ("--work", "--output"):
        folders = {"--work": str(tmp_path / "work"), "--output": str(tmp_path / "out"), option: str(tmp_path / "file")}
        with pytest.raises(SystemExit) as caught:
            zoo_cli.main(["vit", *(text for pair in folders.items() for text in pair)])
        assert caught.value.code == 2
        assert option in capsys.readouterr().err.splitlines()[-1]


# --- models


@pytest.mark.parametrize("name", ZOO.names)
def test_a_folded_stem_computes_the_same(name):
    torch.manual_seed(0)
    net = build(name, folded=False)
    images = torch.randn(8, 3, 32, 32)
    net(images)  # in training mode: the batch norms' statistics move away from their start
    folded = build(name)
    folded.load_state_dict(fold(net))
    assert torch.allclose(folded.eval()(images), net.eval()(images), atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert sum(p.numel() for p in folded.parameters()) <= 5_000_000


def test_zoo_weights_are_those_of_their_cards():
    for name in ZOO.names:
        weights = ZOO.folder / f"{name}.safetensors"
        card = json.loads((ZOO.folder / f"{name}.json").read_text())
        assert card["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert weights.stat().st_size <= 11_000_000


@pytest.mark.skipif(not (REAL / PACKED).is_file(), reason="the packed CIFAR-10 is not there")
@pytest.mark.parametrize("name", ZOO.names)
def test_zoo_model_knows_real_images(name):
    suite = open_suite("cifar10", REAL)
    model = suite.load(name, CPU)
    assert suite.evaluate(model, model.net, 500).metrics["top1"] > 75


# --- training


def test_augment_mirrors_and_shifts_as_padding_and_cropping_do():
    images = torch.arange(4 * 3 * 8 * 8.0).reshape(4, 3, 8, 8)
    moved = augment(images, 2, torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(images, (2,) * 4, mode="reflect")
    for before, after in zip(padded, moved, strict=True):
        crops = [before[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        assert any(torch.equal(after, c) or torch.equal(after, c.flip(-1)) for c in crops)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO.names)
def test_the_command_trains_resumes_and_exports(name, packed, tmp_path, monkeypatch):
    changes = {"epochs": 2, "full_epochs": 1, "batch": 20, "warmup_steps": 1}
    short = {k: dataclasses.replace(recipe, **changes) for k, recipe in training.RECIPES.items()}
    monkeypatch.setattr(training, "RECIPES", short)
    arguments = [f"cifar10_{name}", "--data-root", str(packed), "--work", str(tmp_path / "work")]
    zoo_cli.main([*arguments, "--output", str(tmp_path / "out")])
    card = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert len(card["curve"]) == 2
    assert 0 <= card["top1_full_test"] <= 100
    zoo_cli.main([*arguments, "--output", str(tmp_path / "again")])  # nothing left to train
    assert json.loads((tmp_path / "again" / f"{name}.json").read_text()) == card


def test_other_data_need_another_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        zoo_cli.main(["cifar10", "vit", "--work", str(tmp_path)])
    assert caught.value.code == 2
    assert "use two commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", ["tasks.suites.cifar10.dataset", "tasks.suites.embedded.fashion", "tasks.training.cli"]
)
def test_a_user_without_a_home_gets_a_sentence_only_when_one_is_needed(module, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is without HOME and without an account
    spec = importlib.util.find_spec(module)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, fresh)  # dataclasses look their module up
    spec.loader.exec_module(fresh)
    if hasattr(fresh, "DEBIAN_ROOT"):
        fresh.DEBIAN_ROOT = Path("/nowhere")
    with pytest.raises(UsageError, match=r"no home folder, .* --data-root"):
        (fresh.default_root if hasattr(fresh, "default_root") and module != "tasks.training.cli" else fresh.downloads)()
