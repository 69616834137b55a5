from __future__ import annotations

import argparse
import os
import pickle
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from permissions import as_nobody, superuser
from safetensors.torch import save_file
from torch import nn

from harness.api.errors import UsageError
from tasks.models.checkpoints import Taken, load_weights


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
    ("name", "message"),
    [("none.pth", "does not exist"), ("w.npz", "must end in"), ("dir.pth", "it is a folder, not a file")],
)
def test_wrong_path_gets_a_sentence(net, tmp_path, name, message):
    (tmp_path / "dir.pth").mkdir()
    with pytest.raises(UsageError, match=message):
        load_weights(net, tmp_path / name)


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_k2_the_moving_average_is_taken_as_by_timm_and_can_be_chosen(net, state, tmp_path, names):
    """FAULTS K2 "a checkpoint with `state_dict` and `state_dict_ema`"."""
    average = {k: v + 1 for k, v in state.items()}
    raw_name, ema_name = names
    path = tmp_path / "w.pth.tar"  # as timm's training script calls them, arguments and all
    torch.save({"epoch": 3, raw_name: state, ema_name: average, "args": argparse.Namespace(lr=0.1)}, path)
    for which, expected, taken in (
        ("", average, Taken(ema_name, (raw_name,))),
        ("ema", average, Taken(ema_name, (raw_name,))),
        ("raw", state, Taken(raw_name, (ema_name,))),
    ):
        assert load_weights(net, path, which) == taken
        assert_loaded(net, expected)
    torch.save({raw_name: state}, path)
    assert load_weights(net, path) == Taken(raw_name)
    with pytest.raises(UsageError, match="has no moving average"):
        load_weights(net, path, "ema")


@pytest.mark.parametrize(
    "rename",
    [
        "module.{}",
        "_orig_mod.{}",
        "model.{}",
        "backbone.{}",
        "module._orig_mod.{}",
        "model.encoder.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_k3_prefixes_are_dropped_if_the_rest_fits(net, state, tmp_path, rename):
    """FAULTS K3 "checkpoint keys behind `_orig_mod.`, `model.` (Lightning), `backbone.`"."""
    torch.save({"state_dict": {rename.format(k): v for k, v in state.items()}}, tmp_path / "w.ckpt")
    load_weights(net, tmp_path / "w.ckpt")
    assert_loaded(net, state)


def test_modules_that_were_compiled_alone_are_found(net, state, tmp_path):
    """A further member of K3 "checkpoint keys": the wrapper's name stands in the middle, of some names."""
    mixed = {k.replace("0.", "0._orig_mod."): v for k, v in state.items()}
    torch.save(mixed, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert_loaded(net, state)
    torch.save(mixed | {"0.weight": state["0.weight"] + 1}, tmp_path / "w.pth")  # which of the two?
    with pytest.raises(UsageError, match=r"unknown weights 0\._orig_mod"):
        load_weights(net, tmp_path / "w.pth")


@pytest.mark.parametrize("more", ["ema.0.weight", "criterion.weight"])
def test_a_prefix_stays_if_the_rest_does_not_fit(net, state, tmp_path, more):
    torch.save({f"model.{k}": v for k, v in state.items()} | {more: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=rf"unknown weights {more}"):
        load_weights(net, tmp_path / "w.pth")


def test_k3_names_of_another_library_are_shown_beside_the_models(net, tmp_path):
    """FAULTS K3 "Hugging Face's names"."""
    theirs = {f"vit.encoder.layer.{i}.attention.query.weight": torch.zeros(3, 4) for i in range(5)}
    save_file(theirs, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"lacks weights 0\.bias.*has unknown weights vit\.encoder.*and 2 more"):
        load_weights(net, tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: w.to(torch.complex64), "complex numbers"),
        (lambda w: torch.full_like(w, float("nan"), dtype=torch.complex64), "complex numbers"),
        (lambda w: w.to_sparse(), "a sparse tensor"),
        (lambda w: w.to_sparse_csr(), "a sparse tensor"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda w: torch.quantize_per_channel(w, torch.ones(3), torch.zeros(3), 0, torch.qint8), "a quantized tensor"),
        (lambda w: w.to(torch.float8_e4m3fn), "a quantized tensor"),
        (lambda w: torch.empty_like(w, device="meta"), "a tensor without values"),
        (lambda w: torch.nested.nested_tensor([w[0], w[1], w[2]]), "a nested tensor"),
    ],
)
def test_k5_odd_tensors_are_refused(net, state, tmp_path, make, message):
    """FAULTS K5 "checkpoints with complex (also complex NaN), sparse, quantized or meta tensors"."""
    torch.save(state | {"0.weight": make(state["0.weight"])}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=f"holds {message}"):
        load_weights(net, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "convert"),
    [("0.weight", torch.Tensor.int), ("0.weight", torch.Tensor.bool), ("1.num_batches_tracked", torch.Tensor.float)],
)
def test_k5_integers_where_floats_are_expected_are_refused(net, state, tmp_path, name, convert):
    """A further member of FAULTS K5: torch would convert them without a word."""
    torch.save(state | {name: convert(state[name])}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=rf"{name} is torch\.\w+ in the file and torch\.\w+ in the model"):
        load_weights(net, tmp_path / "w.pth")


def test_a_value_too_large_for_float32_is_refused(net, state, tmp_path):
    """A further member of K5: finite in the file, infinite in the model."""
    torch.save(state | {"0.bias": torch.full((3,), 1e300, dtype=torch.float64)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"infinite values in 0\.bias"):
        load_weights(net, tmp_path / "w.pth")


def test_parameters_are_tensors(net, state, tmp_path):
    torch.save({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert_loaded(net, state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "it is a FIFO"),
        (lambda p: p.symlink_to("/dev/zero"), "it is a device"),
        (lambda p: p.symlink_to("/nowhere"), "a symbolic link to /nowhere"),
        (lambda p: p.symlink_to(p), "symbolic links"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_k5_what_is_not_a_regular_file_is_refused(net, tmp_path, make, message, suffix):
    """FAULTS K5 "a FIFO, a device or a link to one": at once, and with a sentence."""
    make(tmp_path / f"w{suffix}")
    with pytest.raises(UsageError, match=rf"w\{suffix} cannot be read: .*{message}"):
        load_weights(net, tmp_path / f"w{suffix}")


def test_k5_a_name_too_long_gets_a_sentence(net, tmp_path):
    """FAULTS K5 "names over 255 bytes"."""
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        load_weights(net, tmp_path / f"{'x' * 300}.pth")


@superuser
def test_k5_a_checkpoint_that_may_not_be_read_gets_a_sentence(net):
    """FAULTS K5 "folders that may not be read (checkpoint)"."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "w.pth"
        path.write_bytes(b"secret")
        path.chmod(0)
        for mode in (0o755, 0):  # the file, then its folder
            Path(name).chmod(mode)
            with as_nobody(), pytest.raises(UsageError, match=r"w\.pth cannot be read: Permission denied$"):
                load_weights(net, path)


def test_checkpoints_in_several_files_are_refused(net, state, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="index of several files"):
        load_weights(net, tmp_path / "model.safetensors.index.json")
    save_file({"0.weight": state["0.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UsageError, match=r"lacks weights .*it is one of several files"):
        load_weights(net, tmp_path / "model-00001-of-00002.safetensors")


def test_nothing_is_warned_of(net, state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(net, tmp_path / "w.pth")
