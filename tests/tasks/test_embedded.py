from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from harness.api.errors import DataFreeViolation, UsageError
from harness.api.sealing import sealed_data
from harness.catalog.catalog import Catalog
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from tasks.classification.info import INFO
from tasks.classification.suite import open_suite
from tasks.models.timm_models import kl_divergence
from tasks.suites.embedded import zoo
from tasks.suites.embedded.architectures import build
from tasks.suites.embedded.dataset import FILE, EmbeddedData
from tasks.suites.embedded.fashion import default_root
from tasks.suites.embedded.make_subset import choose, make_subset
from tasks.training.cli import main as zoo_main

CPU = torch.device("cpu")
TINY = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def suite():
    return INFO.load()("embedded", data_root=None)


@pytest.fixture(scope="module")
def swin(suite):
    return suite.load("swin", CPU)


def test_info_imports_no_torch():
    code = "import sys, tasks.classification.info; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- data


def test_subset_is_balanced_and_disjoint():
    with np.load(FILE, allow_pickle=False) as data:
        assert data["test_images"].shape == (2000, 28, 28)
        assert data["calibration_images"].shape == (512, 28, 28)
        for part in ("test", "calibration"):
            assert data[f"{part}_images"].dtype == np.uint8
            labels, indices = data[f"{part}_labels"], data[f"{part}_indices"]
            assert labels.tolist() == [i % 10 for i in range(len(labels))]
            assert len(set(indices.tolist())) == len(indices)
            assert len(np.unique(data[f"{part}_images"], axis=0)) > 0.99 * len(indices)
        # Different splits of the original cannot overlap by index; by content they must not either.
        seen = {image.tobytes() for image in data["test_images"]}
        assert not any(image.tobytes() in seen for image in data["calibration_images"])


@pytest.mark.parametrize("keep", [0, 100, FILE.stat().st_size // 2, FILE.stat().st_size - 5])
def test_damaged_subset_gets_a_sentence(tmp_path, keep):
    (tmp_path / "x.npz").write_bytes(FILE.read_bytes()[:keep])
    with pytest.raises(UsageError, match="are damaged"):
        len(EmbeddedData(tmp_path / "x.npz"))


def test_choice_takes_classes_in_turn():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 7)
    chosen = choose(labels, 23, np.random.default_rng(0))
    assert labels[chosen].tolist() == [i % 10 for i in range(23)]
    assert len(set(chosen.tolist())) == 23


@pytest.mark.skipif(not default_root().is_dir(), reason="the original Fashion-MNIST files are not installed")
def test_subset_is_what_the_script_makes(tmp_path):
    for name in ("a.npz", "b.npz"):
        make_subset(default_root(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as made, np.load(FILE) as kept:
        assert made.files == kept.files
        assert all(np.array_equal(made[name], kept[name]) for name in kept.files)


def test_evaluation_limit_is_balanced(suite, swin):
    result = suite.evaluate(swin, swin.net, 30)
    assert result.outcomes["label"].value_counts().tolist() == [3] * 10
    assert list(result.outcomes) == ["index", "label", "prediction", "correct", "confidence"]
    assert result.outcomes["confidence"].between(0.1, 1).all()
    assert set(result.metrics) == {suite.primary_metric} == {"top1"}
    with pytest.raises(UsageError, match="2000 evaluation images"):
        suite.evaluate(swin, swin.net, 2001)
    with pytest.raises(UsageError, match="limit 2001 is not between 1 and the 2000"):
        suite.check_limit(2001)
    with pytest.raises(UsageError, match="limit 0"):
        suite.evaluate(swin, swin.net, 0)


def test_no_limit_means_all(suite, swin):
    result = suite.evaluate(swin, lambda x: torch.zeros(len(x), 10), None)
    assert len(result.outcomes) == 2000
    assert result.metrics["top1"] == 10.0


def test_calibration_draws_without_replacement(suite, swin):
    calib = suite.calibration(swin)
    images = calib.images(512, torch.Generator().manual_seed(0))
    assert images.shape == (512, 1, 32, 32)
    assert len(images.flatten(1).unique(dim=0)) >= 511
    again = calib.images(16, torch.Generator().manual_seed(0))
    assert torch.equal(again, images[:16])
    assert not torch.equal(again, calib.images(16, torch.Generator().manual_seed(1)))
    with pytest.raises(UsageError, match="513"):
        calib.images(513, torch.Generator())


def test_sealed_data_raise(suite, swin):
    calib = suite.calibration(swin)
    with sealed_data("mine"):
        for access in (
            lambda: suite.calibration(swin),
            lambda: calib.images(1, torch.Generator()),
            lambda: suite.evaluate(swin, swin.net, 1),
            lambda: next(suite.data.evaluation(swin, 1)),
            lambda: suite.data.calibration(swin, [0]),
        ):
            with pytest.raises(DataFreeViolation, match="mine"):
                access()


# --- models


@pytest.mark.fast(name="vit")
@pytest.mark.parametrize("name", zoo.ZOO.names)
def test_zoo_model_is_ready_to_quantize(suite, name):
    model = suite.load(name, CPU)
    assert name in suite.models()
    assert not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    fused = [m.fused_attn for m in model.net.modules() if hasattr(m, "fused_attn")]
    assert fused == [False] * 6
    assert suite.evaluate(model, model.net, 500).metrics["top1"] > 60


@pytest.mark.parametrize("name", zoo.ZOO.further)
def test_further_models_are_run_only_if_they_are_named(suite, name):
    model = suite.load(name, CPU)
    assert name not in suite.models()
    assert suite.evaluate(model, model.net, 500).metrics["top1"] > 60


def test_methods_get_targets_and_losses(swin):
    targets = swin.sample_targets(64, torch.Generator().manual_seed(0))
    assert targets.dtype == torch.int64
    assert set(targets.tolist()) <= set(range(10))
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert swin.target_loss(logits, targets[:4]) == functional.cross_entropy(logits, targets[:4])
    assert swin.output_distance(logits, logits).item() == pytest.approx(0.0, abs=1e-7)


def test_distance_is_kl_from_the_reference():
    q, fp = torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert kl_divergence(q, fp).item() == pytest.approx(expected)


def test_identity_follows_weights_not_place(suite, tmp_path):
    net = suite.load(f"{TINY}@random", CPU).net
    for name in ("a.pth", "b.pt"):
        torch.save(net.state_dict(), tmp_path / name)
    net.head.bias += 1.0
    torch.save(net.state_dict(), tmp_path / "c.pth")
    random, a, b, c = (
        suite.model_identity(f"{TINY}@{weights}")
        for weights in ("random", *(tmp_path / n for n in ("a.pth", "b.pt", "c.pth")))
    )
    assert random == a == b != c
    assert suite.model_identity("vit") != suite.model_identity("swin")


def test_canonical_name_holds_no_path(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(suite.load(f"{TINY}@random", CPU).net.state_dict(), "a.pth")
    names = {suite.canonical_name(f"{TINY}@{weights}") for weights in ("a.pth", "./a.pth", tmp_path / "a.pth")}
    assert names == {f"{TINY}@{suite.model_identity(f'{TINY}@a.pth')[:8]}"}
    for name in ("vit", TINY, f"{TINY}@random"):
        assert suite.canonical_name(name) == name


def test_plan_gives_one_key_to_one_checkpoint(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(suite.load(f"{TINY}@random", CPU).net.state_dict(), "a.pth")

    def keys(weights):
        request = Request(methods=("noise",), models=(f"{TINY}@{weights}",), references=False)
        return make_plan(request, Catalog.default(), Store(tmp_path / "none")).keys

    assert keys("a.pth") == keys("./a.pth")


@pytest.mark.fast(name="vit_tiny_patch16_224")
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "beit_base_patch16_224",
        "resnet18",  # knows no image size
    ],
)
def test_timm_models_take_embedded_images(suite, name):
    model = suite.load(f"timm:{name}@random", CPU)
    assert model.net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert model.input_shape == (1, 32, 32)


def test_random_weights_leave_the_global_generator_alone(suite):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    suite.load(f"{TINY}@random", CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "no model 'resnet'; it has vit, swin, efficientvit"),
        ("timm:deit_tinny_patch16_224", "did you mean timm:deit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.nonsense@random", "Invalid pretrained tag"),
        ("timm:hf-hub:timm/vit_tiny_patch16_224", "timm has no model"),
        ("timm:vit_tiny_patch16_224", r"pretrained on other images .*@FILE"),
        ("timm:vit_tiny_patch16_224@", "names no checkpoint"),
        ("timm:vit_tiny_patch16_224@missing.pth", r"missing\.pth does not exist"),
    ],
)
def test_bad_model_name_gets_a_sentence(suite, name, message):
    for call in (lambda: suite.load(name, CPU), lambda: suite.model_identity(name)):
        with pytest.raises(UsageError, match=message):
            call()


def test_checkpoint_of_another_model_gets_a_sentence(suite, tmp_path):
    torch.save(build("vit").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth"):
        suite.load(f"{TINY}@{tmp_path / 'other.pth'}", CPU)


def test_unknown_suite_and_stray_data_root(tmp_path):
    with pytest.raises(UsageError, match="it has embedded, cifar10, imagenet"):
        open_suite("cifar100")
    with pytest.raises(UsageError, match="takes no data root"):
        open_suite("embedded", data_root=tmp_path)
    with pytest.raises(UsageError, match="suite 'tiny' brings its own data and takes no data root"):
        open_suite("tiny", data_root=tmp_path)


# --- zoo


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    state = {k: v.half() if v.is_floating_point() else v for k, v in build("swin").state_dict().items()}
    result = {
        "state": state,
        "recipe": {"epochs": 1, "seed": 0},
        "seconds": 90,
        "threads": 2,
        "torch": "2",
        "curve": [{"epoch": 1, "loss": 2.0, "top1": 50.0}],
        "top1_full_test": 51.0,
    }
    folder = tmp_path_factory.mktemp("zoo") / "weights"
    zoo.ZOO.export(result, "swin", folder)
    return state, folder


@pytest.mark.slow
def test_export_writes_weights_card_and_model_card(exported):
    state, folder = exported
    stored = load_file(folder / "swin.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in state.items())
    card = json.loads((folder / "swin.json").read_text())
    assert card["weights_sha256"] == hashlib.sha256((folder / "swin.safetensors").read_bytes()).hexdigest()
    assert 0 <= card["top1_embedded_test"] <= 100
    assert "## swin" in (folder / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_exported_weights_load(exported):
    state, folder = exported
    net = zoo.ZOO.build_trained("swin", folder)
    assert all(torch.equal(v, state[k].float()) for k, v in net.state_dict().items())
    with pytest.raises(UsageError, match=r"vit.*missing"):
        zoo.ZOO.build_trained("vit", folder)


def test_zoo_weights_are_those_of_their_cards():
    for name in (*zoo.ZOO.names, *zoo.ZOO.further):
        weights = zoo.ZOO.folder / f"{name}.safetensors"
        card = json.loads((zoo.ZOO.folder / f"{name}.json").read_text())
        assert card["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert weights.stat().st_size < 6_000_000


@pytest.mark.parametrize(("arguments", "message"), [(["resnet"], "no zoo model"), (["--data-root", "none"], "missing")])
def test_zoo_command_line_says_what_is_wrong(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        zoo_main([*arguments, "--work", str(tmp_path)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
