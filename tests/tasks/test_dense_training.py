"""The dense zoo's training: it learns, resumes and exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.api.errors import UsageError
from tasks.suites.embedded import dense_zoo, train_dense
from tasks.suites.embedded.scene_splits import calibration_scenes
from tasks.suites.embedded.train_dense import Recipe, Training
from tasks.training import cli as zoo_cli

SCENES = calibration_scenes()


class Colours:
    """A toy task: say the mean colour of a scene. It draws random numbers, as detectors' losses do."""

    def build(self, config, checkpoint=None):
        raise NotImplementedError

    def loss(self, net, scenes):
        images = torch.from_numpy(np.stack([s.image for s in scenes])) / 255.0
        return functional.mse_loss(net(images + 0.01 * torch.randn(images.shape)), images.mean((2, 3)))

    def evaluate(self, net, scenes):
        assert not net.training
        return {"error": self.loss(net, scenes).item()}


def toy_net():
    torch.manual_seed(0)
    layers = {"pool": nn.AvgPool2d(32), "flat": nn.Flatten(), "backbone": nn.Sequential(nn.Linear(48, 8))}
    return nn.Sequential(OrderedDict(**layers, head=nn.Linear(8, 3), norm=nn.BatchNorm1d(3)))


def run(work, recipe):
    work.mkdir(exist_ok=True)
    return train_dense.train(
        "toy", task=Colours(), net=toy_net(), recipe=recipe, scenes=SCENES, watched=[SCENES[99]] * 2, work=work
    )


@pytest.mark.fast(muon=False)
@pytest.mark.parametrize("muon", [False, True])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(muon, tmp_path, monkeypatch):
    recipe = Recipe(iterations=20, batch=4, warmup=2, average=0.8, muon=muon)
    whole = run(tmp_path / "whole", recipe)
    assert whole["curve"][-1]["loss"] < whole["curve"][0]["loss"]
    assert [point["iteration"] for point in whole["curve"]] == list(range(2, 21, 2))
    assert not any("num_batches" not in k and v.dtype != torch.float16 for k, v in whole["state"].items())

    monkeypatch.setattr(train_dense, "SAVE_SECONDS", 0.0)
    real = Training.update

    def stop_in_13(self, loss):
        if self.step == 12:
            raise KeyboardInterrupt
        real(self, loss)

    monkeypatch.setattr(Training, "update", stop_in_13)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", recipe)
    monkeypatch.setattr(Training, "update", real)
    resumed = run(tmp_path / "cut", recipe)
    again = run(tmp_path / "cut", recipe)  # nothing left to train
    for result in (resumed, again):
        assert all(torch.equal(result["state"][k], v) for k, v in whole["state"].items())
        assert [point["error"] for point in result["curve"]] == [point["error"] for point in whole["curve"]]
    assert again["seconds"] == resumed["seconds"]


def test_average_follows_the_weights():
    training = Training(toy_net(), Recipe(iterations=50, warmup=1, average=0.5, lr=0.1))
    for _ in range(50):
        training.update(sum(p.square().sum() for p in training.net.parameters()))
    weight, mean = training.net.head.weight.detach(), training.averaged().head.weight
    assert not torch.equal(weight, mean)
    assert (weight - mean).abs().max() < 0.05


def test_rate_warms_up_and_falls_to_zero():
    rates = [Recipe(iterations=100, warmup=10, lr=1.0).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_diverged_training_says_so():
    training = Training(toy_net(), Recipe(iterations=10))
    with pytest.raises(FloatingPointError, match="nan in iteration 0"):
        training.update(torch.tensor(float("nan")))


# --- the zoo


@pytest.mark.parametrize("name", dense_zoo.names())
def test_missing_weights_get_a_sentence(name, tmp_path):
    with pytest.raises(UsageError, match=f"{name}.*are missing"):
        dense_zoo.build_trained(name, tmp_path)


@pytest.mark.parametrize("name", dense_zoo.names())
def test_zoo_weights_are_those_of_their_cards(name):
    card = dense_zoo.FOLDER / f"{name}.json"
    if not card.is_file():
        pytest.skip(f"{name} has not been trained yet")
    facts, weights = json.loads(card.read_text()), dense_zoo.FOLDER / f"{name}.safetensors"
    assert facts["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert facts["config_sha256"] == hashlib.sha256(dense_zoo.config(name).read_bytes()).hexdigest()
    assert weights.stat().st_size < 12_000_000


@pytest.mark.slow
def test_the_command_trains_and_exports(tmp_path, monkeypatch):
    for package in ("mmdet", "mmseg", "faster_coco_eval"):
        pytest.importorskip(package, exc_type=ImportError)
    models = {
        name: dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, iterations=2, batch=2, warmup=1))
        for name, model in dense_zoo._MODELS.items()
    }
    monkeypatch.setattr(dense_zoo, "_MODELS", models)
    monkeypatch.setattr(dense_zoo, "WATCHED", 2)
    monkeypatch.setattr("tasks.suites.embedded.scene_splits.EVALUATION_COUNT", 4)
    # In place of the 60,000 original items, which need not be installed.
    monkeypatch.setattr(
        "tasks.suites.embedded.scene_splits.load_split", lambda root, split: (SCENES.items, SCENES.labels)
    )
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    zoo_cli.main(["segmentation", "detection", *folders])
    metrics = {"detection": {"box_ap", "mask_ap"}, "segmentation": {"miou"}}
    for name in dense_zoo.names():
        card = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert metrics[card["task"]] <= card["metrics"].keys()
        assert ("start" in card) == (models[name].starts_from is not None)
        assert card.get("start", card)["recipe"]["iterations"] == 2  # what was trained before, and not kept
        assert all(0 <= value <= 100 for value in card["metrics"].values())
        weights = tmp_path / "out" / f"{name}.safetensors"
        assert weights.stat().st_size == card["weights_bytes"] < 12_000_000
        net = dense_zoo.build_trained(name, tmp_path / "out")
        assert not net.training
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert "## mask_rcnn_swin" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    with pytest.raises(UsageError, match="lacks"):
        dense_zoo._task("upernet_swin").build(
            dense_zoo.config("upernet_swin"), tmp_path / "out" / "mask_rcnn_swin.safetensors"
        )
