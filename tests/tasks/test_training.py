"""The zoo's training on a handful of images in the original file format: it learns, resumes and exports."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.suites.embedded import train as training
from tasks.suites.embedded.train import augment, orthogonalise
from tasks.training import cli as zoo_cli


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    with gzip.open(path, "wb") as stream:
        stream.write(header + array.tobytes())


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 60), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 30, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 6] += 200  # a bright bar whose height is the class
        write_idx(root / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return root


@pytest.fixture
def short(monkeypatch):
    recipes = {
        name: dataclasses.replace(recipe, epochs=2, full_epochs=1, batch=20, warmup_steps=1)
        for name, recipe in training.RECIPES.items()
    }
    monkeypatch.setattr(training, "RECIPES", recipes)
    return recipes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(name, data_root, short, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = training.train(name, data_root, tmp_path / "whole")
    assert whole["curve"][1]["loss"] < whole["curve"][0]["loss"]

    real_save, saves = torch.save, []

    def save_then_stop(*args):
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt
        real_save(*args)

    monkeypatch.setattr(training.torch, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(name, data_root, tmp_path / "cut")
    monkeypatch.setattr(training.torch, "save", real_save)
    # The first epoch is in the checkpoint, the second is repeated.
    resumed = training.train(name, data_root, tmp_path / "cut")
    assert all(torch.equal(resumed["state"][k], v) for k, v in whole["state"].items())
    again = training.train(name, data_root, tmp_path / "cut")  # nothing left to train
    assert all(torch.equal(again["state"][k], v) for k, v in whole["state"].items())


@pytest.mark.slow
def test_the_command_trains_and_exports(data_root, short, tmp_path):
    arguments = [
        "swin",
        "--data-root",
        str(data_root),
        "--work",
        str(tmp_path / "work"),
        "--output",
        str(tmp_path / "out"),
    ]
    zoo_cli.main(arguments)
    card = json.loads((tmp_path / "out" / "swin.json").read_text())
    assert card["recipe"]["epochs"] == 2
    assert len(card["curve"]) == 2
    assert 0 <= card["top1_full_test"] <= 100
    assert (tmp_path / "out" / "swin.safetensors").stat().st_size == card["weights_bytes"]


def test_orthogonalise_brings_singular_values_near_one():
    for shape in ((12, 30), (30, 12)):
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(g))
        # The quintic iteration trades exactness for speed: values end between about 0.7 and 1.2.
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3


def test_augment_moves_or_mirrors_but_keeps_every_pixel():
    images = torch.arange(2 * 1 * 8 * 8.0).reshape(2, 1, 8, 8)
    moved = augment(images, 2, torch.Generator().manual_seed(3))
    assert moved.shape == images.shape
    for before, after in zip(images, moved, strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    still = augment(images, 0, torch.Generator().manual_seed(0))
    for before, after in zip(images, still, strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
