from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from harness.api.errors import UsageError
from tasks.models.checkpoint_settings import split_brackets
from tasks.models.checkpoint_use import SORTED, ready_made
from tasks.models.preprocessing import Preprocessing
from tasks.models.timm_models import build_timm

NAME = "test_vit"  # 160 pixels, mean and std 0.5, crop_pct 0.95
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3).state_dict()


@pytest.fixture
def file(state, tmp_path) -> Path:
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def build(reference: str | Path, class_names=CLASSES, fixed=None):
    net, facts = build_timm(f"timm:{NAME}@{reference}", classes=3, class_names=class_names, fixed=fixed)
    return net, Preprocessing.of(net), facts


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))


SAID = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8, "interpolation": "bilinear"}
EXPECTED = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear")


def facts_of(preprocessing: Preprocessing):
    return preprocessing.mean, preprocessing.std, preprocessing.crop_pct, preprocessing.interpolation


def test_k2_what_is_taken_for_granted_is_said(file):
    """FAULTS K2 "`timm:NAME@my.safetensors` fine-tuned with other mean/std, crop, size or class order"."""
    _, preprocessing, facts = build(file)
    usual = timm.create_model(NAME).pretrained_cfg
    assert preprocessing.mean == tuple(usual["mean"])
    assert preprocessing.crop_pct == usual["crop_pct"]
    (notice,) = facts.notices
    assert "w.safetensors does not say how its images are prepared" in notice
    assert f"mean 0.5/0.5/0.5, std 0.5/0.5/0.5, 160x160 pixels, crop_pct {usual['crop_pct']:g}" in notice
    assert facts.origin == f"timm's {NAME}.{usual['tag']}"
    assert facts.classes == SORTED


@pytest.mark.parametrize("where", ["w.json", "w.safetensors.json", "config.json"])
@pytest.mark.parametrize("form", ["new", "old"])
def test_k2_a_config_in_timms_format_is_read(file, where, form):
    """FAULTS K2 as above: its own preprocessing, in the new form and the one before it."""
    around = {"architecture": NAME, "num_classes": 3, "global_pool": "token"}
    write(file.with_name(where), around | ({"pretrained_cfg": SAID} if form == "new" else SAID))
    _, preprocessing, facts = build(file)
    assert facts_of(preprocessing) == EXPECTED
    assert (facts.origin, facts.notices) == (where, ())


def test_k2_metadata_of_a_safetensors_file_are_read(state, tmp_path):
    metadata = {"format": "pt", "pretrained_cfg": json.dumps(SAID), "label_names": json.dumps(["bee", "ant", "cat"])}
    save_file(state, tmp_path / "w.safetensors", metadata=metadata)
    _, preprocessing, facts = build(tmp_path / "w.safetensors")
    assert facts_of(preprocessing) == EXPECTED
    assert facts.origin == facts.classes == "metadata of w.safetensors"


def test_k2_brackets_say_it_too_and_count_more(file):
    brackets = "[mean=0.1/0.2/0.3,std=0.4/0.5/0.6,crop_pct=0.8,interpolation=bilinear]"
    _, preprocessing, facts = build(f"{file}{brackets}")
    assert facts_of(preprocessing) == EXPECTED
    assert (facts.origin, facts.notices) == ("brackets", ())
    write(file.with_name("w.json"), {"pretrained_cfg": SAID})
    _, preprocessing, facts = build(f"{file}[mean=0.25,crop_mode=squash]")
    assert facts_of(preprocessing) == ((0.25,) * 3, *EXPECTED[1:])
    assert preprocessing.crop_mode == "squash"
    assert facts.origin == "w.json and brackets"


@pytest.mark.parametrize("size", ["192", "3/192/192"])
def test_k2_another_input_size_is_built(state, tmp_path, size):
    torch.manual_seed(1)
    larger = timm.create_model(NAME, num_classes=3, img_size=192)
    save_file(larger.state_dict(), tmp_path / "w.safetensors")
    net, preprocessing, _ = build(f"{tmp_path / 'w.safetensors'}[input_size={size}]")
    assert preprocessing.input_shape == (3, 192, 192)
    x = torch.randn(1, 3, 192, 192)
    assert torch.equal(net.eval()(x), larger.eval()(x))
    with pytest.raises(UsageError, match=r"pos_embed is \(1, 145, 64\) in the file"):
        build(tmp_path / "w.safetensors")


@pytest.mark.parametrize("form", ["lines", "list", "class_to_idx", "config", "beside"])
def test_k2_outputs_are_put_in_the_order_of_the_folders(state, file, tmp_path, form):
    """FAULTS K2 as above: another order of classes."""
    order = ["cat", "ant", "bee"]
    names = tmp_path / ("names.txt" if form == "lines" else "names.json")
    if form == "lines":
        names.write_text("cat\nant\nbee\n")
    elif form == "beside":
        write(tmp_path / "w.json", {"label_names": order, "pretrained_cfg": SAID})
    else:
        write(
            names,
            {"list": order, "class_to_idx": {"ant": 1, "bee": 2, "cat": 0}, "config": {"label_names": order}}[form],
        )
    net, _, facts = build(file if form == "beside" else f"{file}[classes={names}]")
    assert facts.classes == ("w.json" if form == "beside" else names.name)
    assert torch.equal(net.head.weight, state["head.weight"][[1, 2, 0]])
    assert torch.equal(net.head.bias, state["head.bias"][[1, 2, 0]])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ant", "bee", "dog"],
            "1 that only the data root has, 'cat' among them and 1 that only names.json names, 'dog'",
        ),
        (["ant", "bee"], "1 that only the data root has, 'cat'"),
        (["ant", "bee", "cat", "dog"], "1 that only names.json names, 'dog'"),
        (["ant", "bee", "bee"], "names the class 'bee' twice"),
        ([1, 2, 3], "list of texts"),
        ({"ant": 1, "bee": 2, "cat": 3}, "list of texts"),
        ([], "list of texts"),
    ],
)
def test_k2_other_classes_are_refused(file, tmp_path, names, message):
    write(tmp_path / "names.json", names)
    with pytest.raises(UsageError, match=message):
        build(f"{file}[classes={tmp_path / 'names.json'}]")


@pytest.mark.parametrize("names", [("1", "10", "2"), ("Bee", "ant", "cat"), ("c10", "c11", "c9")])
def test_k2_folders_that_timm_and_torchvision_sort_apart_need_an_order(file, tmp_path, names):
    """A further member of K2 "class order": with the one library's order all but the first few outputs mean others."""
    with pytest.raises(UsageError, match=r"one order for torchvision and another for timm .*\[classes=FILE\]"):
        build(file, names)
    (tmp_path / "names.txt").write_text("\n".join(names))
    build(f"{file}[classes={tmp_path / 'names.txt'}]", names)
    build("random", names)


def test_k2_a_pretrained_models_classes_are_known_by_wordnets_numbers_or_their_own():
    """A further member of K2 "class order": folders with English names, or numbers without zeros before them."""
    synsets = timm.data.ImageNetInfo("imagenet-1k").label_names()
    net = timm.create_model(NAME)
    before = net.head.weight.clone()
    assert ready_made(net, synsets).classes == "WordNet's numbers"
    assert torch.equal(net.head.weight, before)
    numbers = sorted(map(str, range(1000)))
    assert ready_made(net, numbers).classes == "the class folders' numbers"
    assert torch.equal(net.head.weight, before[[int(number) for number in numbers]])
    with pytest.raises(UsageError, match="1000 that only the data root has, 'a0' among them"):
        ready_made(net, [f"a{i}" for i in range(1000)])


def test_k2_which_weights_were_taken_is_said_and_can_be_chosen(state, tmp_path):
    """FAULTS K2 "a checkpoint with `state_dict` and `state_dict_ema`"."""
    average = {k: v + 1 for k, v in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average}, tmp_path / "w.pth")
    for brackets, expected, taken in (
        ("", average, "state_dict_ema"),
        ("[weights=ema]", average, "state_dict_ema"),
        ("[weights=raw]", state, "state_dict"),
    ):
        net, _, facts = build(f"{tmp_path / 'w.pth'}{brackets}")
        assert torch.equal(net.head.weight, expected["head.weight"])
        assert facts.weights == taken
        said = [notice for notice in facts.notices if f"'{taken}' is taken, not 'state_dict'" in notice]
        assert bool(said) == (not brackets)


@pytest.mark.parametrize(
    ("brackets", "message"),
    [
        ("[means=0.5]", "do not know 'means'; they know mean, std"),
        ("[mean]", "malformed"),
        ("[mean=0.5,mean=0.5]", "malformed"),
        ("[]", "malformed"),
        ("[mean=0.5/0.5]", "3 numbers from 0 to 1"),
        ("[mean=123.675/116.28/103.53]", "3 numbers from 0 to 1, since pixels are from 0 to 1"),
        ("[mean=nan]", "3 numbers"),
        ("[mean=grey]", "3 numbers"),
        ("[std=0]", "3 numbers above 0 to 1"),
        ("[std=1e-400]", "3 numbers above 0 to 1"),
        ("[crop_pct=90]", "a number above 0 to 1"),
        ("[crop_pct=0]", "a number above 0 to 1"),
        ("[crop_mode=centre]", "one of center, squash, border"),
        ("[interpolation=random]", "one of nearest"),
        ("[input_size=224.5]", "height and width"),
        ("[input_size=1/224/224]", "3, height and width"),
        ("[input_size=1000000]", "height and width"),
        ("[weights=best]", "one of ema, raw"),
        ("[classes=/nowhere.txt]", "No such file"),
        ("[classes=/nowhere.json]", "No such file"),
        ("[classes=/dev/zero]", "it is a device"),
    ],
)
def test_values_that_cannot_be_are_refused(file, brackets, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(f"{file}{brackets}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pretrained_cfg": {"means": [0.5] * 3}}, "says 'means', which timm's configs do not know"),
        ({"mean": [0.5] * 3, "crop": 1}, "says 'crop', which timm's configs do not know"),
        ({"pretrained_cfg": {"mean": [0.5, True, 0.5]}}, "3 numbers"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "3 numbers"),
        ({"pretrained_cfg": {"label_offset": 1}}, "says 'label_offset', which is not supported"),
        ({"pretrained_cfg": SAID, "model_args": {"class_token": False}}, "says 'model_args'"),
        ({"pretrained_cfg": SAID, "architecture": "vit_tiny_patch16_224"}, "is for 'vit_tiny_patch16_224', not for"),
        ({"pretrained_cfg": SAID, "label_names": "abc"}, "list of texts"),
    ],
)
def test_configs_that_say_what_is_unknown_are_refused(file, content, message):
    write(file.with_name("w.json"), content)
    with pytest.raises(UsageError, match=message):
        build(file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("{"), "cannot be read as JSON"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
        (lambda p: p.write_text("[" * 100_000), "cannot be read as JSON"),
        (os.mkfifo, "it is a FIFO"),
        (lambda p: p.mkdir(), "it is a folder"),
    ],
)
def test_k5_a_damaged_config_gets_a_sentence(file, make, message):
    make(file.with_name("w.json"))
    with pytest.raises(UsageError, match=rf"w\.json .*{message}"):
        build(file)


def test_a_json_file_of_another_kind_says_nothing(file):
    """What Hugging Face's transformers or a training script leave beside their checkpoints."""
    write(file.with_name("config.json"), {"architectures": ["ViTForImageClassification"], "image_size": 224})
    write(file.with_name("w.json"), {"epochs": 300, "top1": 81.2})
    assert build(file)[2].notices


def test_where_the_suite_prepares_images_only_weights_can_be_chosen(state, tmp_path):
    fixed = Preprocessing(input_shape=(1, 32, 32), mean=(0.5,), std=(0.5,))
    torch.manual_seed(0)
    small = timm.create_model(NAME, num_classes=3, in_chans=1, img_size=32)
    torch.save({"state_dict": small.state_dict()}, tmp_path / "w.pth")
    write(tmp_path / "w.json", {"pretrained_cfg": SAID, "label_names": ["x"]})
    _, _, facts = build(f"{tmp_path / 'w.pth'}[weights=raw]", (), fixed)
    assert (facts.origin, facts.weights) == ("the suite", "state_dict")
    (notice,) = facts.notices
    assert "w.json says of it (mean, std, crop_pct, interpolation, label_names) is not used, since this suite" in notice
    (tmp_path / "w.json").unlink()
    assert not build(tmp_path / "w.pth", (), fixed)[2].notices
    with pytest.raises(UsageError, match="this suite prepares its images itself; leave out mean"):
        build(f"{tmp_path / 'w.pth'}[mean=0.5]", (), fixed)


def test_random_weights_take_no_brackets():
    with pytest.raises(UsageError, match="leave them out"):
        build("random[mean=0.5]")


def test_a_file_may_be_called_by_brackets(tmp_path):
    (tmp_path / "w[1].pth").touch()
    (tmp_path / "w[x=1]").touch()
    assert split_brackets(str(tmp_path / "w[1].pth")) == (str(tmp_path / "w[1].pth"), {})
    assert split_brackets(str(tmp_path / "w[x=1]")) == (str(tmp_path / "w[x=1]"), {})
    assert split_brackets("w[1].pth[weights=raw]") == ("w[1].pth", {"weights": "raw"})


def test_what_a_partial_setting_leaves_open_is_said(file):
    """One value in brackets said nothing of the others, which were then timm's without a word."""
    _, _, facts = build(f"{file}[crop_pct=0.9]")
    (notice,) = facts.notices
    assert "brackets do not say mean, std, interpolation, which are as for timm's test_vit" in notice
    assert "mean 0.5/0.5/0.5, std 0.5/0.5/0.5, 160x160 pixels, crop_pct 0.9" in notice
    assert build(f"{file}[mean=0.5,std=0.5,crop_pct=0.9,interpolation=bicubic]")[2].notices == ()


def test_another_number_of_classes_is_said_in_words(file):
    with pytest.raises(UsageError, match=r"w\.safetensors tells 3 classes apart and the data has 4; give data with"):
        build_timm(f"timm:{NAME}@{file}", classes=4, class_names=("ant", "bee", "cat", "dog"), fixed=None)
