"""Label maps and classes of segmentation data that are not as they should be: found when a model is looked at."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from miniature_data import make_ade
from PIL import Image

from harness.api.errors import UsageError
from tasks.dense.suite import Facts
from tasks.models.openmmlab import ops
from tasks.models.openmmlab.data_config import check_ignored, class_names, label_names, reduces_zero_label
from tasks.suites.ade20k.dataset import AdeFolder
from tasks.suites.embedded.dense_dataset import CLASS_NAMES, SceneData

PIPELINE = ({"type": "LoadImageFromFile"},)
NAMES = (*CLASS_NAMES, "background")
FACTS = Facts(NAMES, PIPELINE, zero_is_none=True)
MAP = "annotations/validation/000001.png"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_ade(tmp_path_factory.mktemp("ade") / "root")


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "root")


def check(root, facts=FACTS):
    AdeFolder(root).check_model("m", facts, masks=False)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.zeros((96, 120), np.uint8), r"000001.png is 120x96 .* its image .*000001.jpg is 128x96"),
        (np.zeros((96, 128, 3), np.uint8), r"000001.png is not a picture of one 8-bit channel .*RGB"),
        (np.zeros((96, 128), np.uint16), r"000001.png is not a picture of one 8-bit channel .*I;16"),
        (np.full((96, 128), 12, np.uint8), r"000001.png has label 11, but the model knows 11 classes, 0 to 10 \(0 in"),
        (np.full((96, 128), 254, np.uint8), r"000001.png has label 253"),
    ],
)
def test_k3_a_label_map_that_does_not_fit_is_named(labels, expected, root):
    """FAULTS K3 "a label map of another size than its image": "operands could not be broadcast", no file named."""
    Image.fromarray(labels).save(root / MAP)
    with pytest.raises(UsageError, match=expected):
        check(root)


def test_label_maps_that_fit_are_taken(root):
    check(root)
    # 255 is not a class, whatever the model; a palette changes no label.
    labels = np.zeros((96, 128), np.uint8)
    labels[:50] = 255
    image = Image.fromarray(labels, "P")
    image.putpalette([7] * 768)
    image.save(root / MAP)
    check(root)
    assert (AdeFolder(root).label_map(1, FACTS) == 255).all()
    # Without reduce_zero_label, label 11 is a twelfth class.
    with pytest.raises(UsageError, match=r"has label 11, but the model knows 11 classes, 0 to 10$"):
        check(root, Facts(NAMES, PIPELINE))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_k5_a_fifo_and_a_damaged_map_are_named(root):
    (root / MAP).write_bytes((root / MAP).read_bytes()[:100])
    with pytest.raises(UsageError, match=r"000001.png cannot be read"):
        check(root)
    with pytest.raises(UsageError, match=r"000001.png cannot be used"):
        AdeFolder(root).identity()
    (root / MAP).unlink()
    os.mkfifo(root / MAP)
    with pytest.raises(UsageError, match=r"000001.png cannot be used: it is a FIFO"):
        AdeFolder(root)


def test_content_identifies_the_label_maps(root):
    before = AdeFolder(root).identity()
    labels = np.asarray(Image.open(root / MAP)).copy()
    labels[0, 0] ^= 1
    Image.fromarray(labels).save(root / MAP)
    assert AdeFolder(root).identity() != before


def test_label_maps_of_images_that_exif_turns(root):
    path = root / "images/validation/000001.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = 6
        image.save(path, exif=exif)
    with pytest.raises(UsageError, match=r"000001.png is 128x96 .* is 96x128"):
        check(root)


# --- classes ------------------------------------------------------------------------------------------------------


def test_labels_are_taken_by_name(root):
    """As mmseg does where a config names other classes than its data set has, or in another order."""
    named = ("background", "bag")
    facts = Facts(named, PIPELINE, zero_is_none=True, labels=NAMES)
    check(root, facts)
    plain, ours = (AdeFolder(root).label_map(0, f) for f in (FACTS, facts))
    for place, name in enumerate(NAMES):
        expected = named.index(name) if name in named else 255
        assert (ours[plain == place] == expected).all()
    assert (ours[plain == 255] == 255).all()
    # What identifies models that name no others is as it was.
    assert repr(FACTS) == repr(Facts(NAMES, PIPELINE, zero_is_none=True, labels=NAMES))


def config(**dataset):
    pytest.importorskip("mmseg", exc_type=ImportError)
    ops.install()
    from mmengine.config import Config

    return Config({"test_dataloader": {"dataset": dataset}})


def test_label_names_are_the_data_sets_where_the_config_names_others():
    from_class = config(type="ADE20KDataset")
    names = class_names(from_class, "mmseg")
    assert len(names) == 150
    assert label_names(from_class) is None
    assert label_names(config(type="BaseSegDataset", metainfo={"classes": ["a", "b"]})) is None
    assert label_names(config(type="ADE20KDataset", metainfo={"classes": names})) is None
    turned = config(type="ADE20KDataset", metainfo={"classes": names[::-1]})
    assert label_names(turned) == names
    ours = mapped(turned, names[::-1])
    from mmseg.datasets import ADE20KDataset

    assert ours == ADE20KDataset.get_label_map(names[::-1])
    with pytest.raises(UsageError, match="names the class 'unicorn', which its data set ADE20KDataset does not have"):
        label_names(config(type="ADE20KDataset", metainfo={"classes": ["wall", "unicorn"]}))


def mapped(config, named):
    return {label: named.index(name) for label, name in enumerate(label_names(config))}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"type": "ADE20KDataset"}, True),  # its own default
        ({"type": "ADE20KDataset", "pipeline": [{"type": "LoadAnnotations"}]}, True),
        ({"type": "BaseSegDataset"}, False),
        ({"pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": True}]}, True),
        ({"type": "ADE20KDataset", "reduce_zero_label": False}, False),
    ],
)
def test_label_zero_is_none_where_mmseg_says_so(dataset, expected):
    assert reduces_zero_label(config(**dataset)) is expected


@pytest.mark.parametrize(
    ("dataset", "look", "expected"),
    [
        (
            {"type": "BaseSegDataset", "pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": True}]},
            reduces_zero_label,
            "says two things of reduce_zero_label",
        ),
        ({"ignore_index": 0}, check_ignored, "leaves out pixels of label 0"),
        ({"metainfo": {"classes": "person"}}, label_names, "not a list of names but 'person'"),
        ({"metainfo": {"classes": ["a", "b", "a"]}}, label_names, "names the class 'a' twice"),
        ({"metainfo": ["a"]}, label_names, "metainfo is not a mapping but list"),
        ({"type": "NoSuchDataset"}, label_names, "data set 'NoSuchDataset' that mmseg does not know"),
        ({"pipeline": "x"}, reduces_zero_label, "pipeline is not a list"),
    ],
)
def test_what_configs_say_of_data_is_checked(dataset, look, expected):
    with pytest.raises(UsageError, match=expected):
        look(config(**dataset))


def test_k2_scenes_are_labelled_by_name():
    """A model with the scenes' classes in another order: labels were taken by place."""
    data, names = SceneData("segmentation"), ("background", *CLASS_NAMES)
    turned = Facts(names[::-1], ())
    data.check_model("m", turned, masks=False)
    usual = data.label_map(0, Facts(names, ()))
    assert (data.label_map(0, turned) == 10 - usual).all()
    data = SceneData("detection")
    usual, other = (data.truth(2, Facts(order, ())) for order in (CLASS_NAMES, CLASS_NAMES[::-1]))
    assert [a["category_id"] for a in other["annotations"]] == [11 - a["category_id"] for a in usual["annotations"]]
    with pytest.raises(UsageError, match=r"knows the class 'cat' .*but scenes have T-shirt"):
        data.check_model("m", Facts(("cat", *CLASS_NAMES[1:]), ()), masks=False)
