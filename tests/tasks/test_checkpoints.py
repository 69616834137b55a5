from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.errors import UsageError
from tasks.checkpoints import load_weights


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict()


def assert_loaded(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_common_wrappers_are_opened(net, state, tmp_path, suffix, wrap):
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(state), path)
    load_weights(net, path)
    assert_loaded(net, state)


def test_prefix_of_parallel_training_is_dropped(net, state, tmp_path):
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert_loaded(net, state)


def test_half_precision_becomes_float32(net, state, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "w.safetensors")
    load_weights(net, tmp_path / "w.safetensors")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert_loaded(net, half)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickle_bomb_is_refused_and_not_executed(net, state, tmp_path, writer):
    path, trace = tmp_path / "bomb.pth", tmp_path / "executed"
    content = {**state, "extra": Bomb(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match=r"bomb\.pth .*refused"):
        load_weights(net, path)
    assert not trace.exists()
    # The bomb is a real one: an unguarded load sets it off.
    if writer == "torch":
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.99])
def test_truncated_file_gets_a_sentence(net, state, tmp_path, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(len(raw) * keep)])
    with pytest.raises(UsageError, match=rf"cut\{suffix} ") as caught:
        load_weights(net, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"0.weight": torch.zeros(5, 4)}, r"0\.weight is \(5, 4\) in the file and \(3, 4\) in the model"),
        (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, r"lacks weights 0\.bias"),
        (lambda s: s | {"9.bias": torch.zeros(1)}, r"has unknown weights 9\.bias"),
        (lambda s: s | {"0.bias": torch.tensor([0.0, float("nan"), 0.0])}, r"NaN or infinite values in 0\.bias"),
        (lambda s: s | {"0.bias": torch.tensor([0.0, float("inf"), 0.0])}, r"NaN or infinite values in 0\.bias"),
        (lambda s: s | {"epoch": 3}, "'epoch', which is not a weight"),
        (lambda s: list(s.values()), "no mapping of names to weights"),
        (lambda s: {}, "no mapping of names to weights"),
    ],
)
def test_unfit_content_gets_a_sentence_and_changes_nothing(net, state, tmp_path, change, message):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=message):
        load_weights(net, tmp_path / "w.pth")
    assert_loaded(net, before)


@pytest.mark.parametrize(
    ("name", "message"), [("none.pth", "does not exist"), ("w.npz", "must end in"), ("dir.pth", "not a file")]
)
def test_wrong_path_gets_a_sentence(net, tmp_path, name, message):
    (tmp_path / "dir.pth").mkdir()
    with pytest.raises(UsageError, match=message):
        load_weights(net, tmp_path / name)
