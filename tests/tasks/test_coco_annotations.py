"""COCO annotation files that are not as they should be: found when the data are opened, in one sentence."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from miniature_data import IDS, LISTED, make_coco
from PIL import Image
from pycocotools import mask as theirs

from harness.api.errors import UsageError
from tasks.dense.suite import Facts
from tasks.files import coco_format as coco
from tasks.suites.coco.annotations import mask_fault
from tasks.suites.coco.dataset import ANNOTATIONS, CocoFolder
from tasks.suites.embedded.dense_dataset import CLASS_NAMES

PIPELINE = ({"type": "LoadImageFromFile"},)
FACTS = Facts(CLASS_NAMES, PIPELINE)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("coco") / "root")


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "root")


def edit(root, change):
    file = root / ANNOTATIONS
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return content


def put(part, place, key, value):
    return lambda content: content[part][place].update({key: value})


def drop(part, place, key):
    return lambda content: content[part][place].pop(key)


def opened(root, *, masks=True):
    data = CocoFolder(root)
    with pytest.warns(UserWarning, match="umbrella"):
        data.check_model("m", FACTS, masks=masks)
    return data


# --- names --------------------------------------------------------------------------------------------------------


def by_name(truth):
    names = {c["id"]: c["name"] for c in truth["categories"]}
    return [(names[a["category_id"]], a["bbox"]) for a in truth["annotations"]]


def test_k2_categories_in_another_order_are_the_same_truth(root):
    """FAULTS K2 "the JSON's categories listed in another order (ids untouched), classes named in the config"."""
    before = CocoFolder(root).truth(3, FACTS)
    edit(root, lambda content: content["categories"].reverse())
    assert CocoFolder(root).truth(3, FACTS) == before
    # Label i of a model is the i-th class that it names.
    assert [(c["id"], c["name"]) for c in before["categories"]] == list(enumerate(CLASS_NAMES, start=1))
    listed = CocoFolder(root).truth(3, Facts(LISTED, PIPELINE))
    assert by_name(listed) == by_name(before)
    assert [c["name"] for c in listed["categories"]] == list(LISTED)


def test_names_of_both_sides_are_said(root):
    data = CocoFolder(root)
    with pytest.raises(UsageError, match=r"'cat', which annotations .*1 such of 2; there are umbrella, ankle boot"):
        data.check_model("m", Facts(("cat", "bag"), PIPELINE), masks=False)
    with pytest.warns(UserWarning, match="does not know 1 of the 11 categories .* 'umbrella' among them"):
        data.check_model("m", FACTS, masks=False)


def test_a_category_name_that_stands_twice_is_refused(root):
    edit(root, put("categories", 1, "name", "umbrella"))
    with pytest.raises(UsageError, match="2 entries of 'categories' with name 'umbrella'"):
        CocoFolder(root)


# --- entries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # FAULTS K3 "COCO ... without `height`, without `file_name`, a duplicate image"
        (drop("images", 1, "height"), r"images\[1\] \(id 3\) has no 'height'"),
        (drop("images", 2, "file_name"), r"images\[2\] \(id 12\) has no 'file_name'"),
        (put("images", 1, "id", IDS[0]), "2 entries of 'images' with id 7"),
        (put("images", 1, "file_name", "000000.jpg"), "2 entries of 'images' with file_name '000000.jpg'"),
        (put("images", 1, "file_name", "val2017/000000.jpg"), "two entries of 'images' for .*000000.jpg"),
        # the same kind
        (drop("images", 0, "width"), r"images\[0\] \(id 7\) has no 'width'"),
        (drop("images", 0, "id"), r"images\[0\] has no 'id'"),
        (drop("annotations", 2, "bbox"), r"annotations\[2\] \(id 102\) has no 'bbox'"),
        (drop("annotations", 0, "category_id"), r"annotations\[0\] .* has no 'category_id'"),
        (drop("categories", 3, "name"), r"categories\[3\] .* has no 'name'"),
        (put("images", 0, "height", "128"), "has \"128\" as 'height', which must be an integer"),
        (put("images", 0, "height", True), "has true as 'height'"),
        (put("images", 0, "width", -5), "has -5 as 'width'"),
        (put("images", 0, "width", 10**400), "has 1000.* as 'width'"),
        (put("images", 0, "id", "7"), r"images\[0\] has \"7\" as 'id', which must be an integer"),
        (put("images", 0, "id", 2**70), "as 'id', which must be an integer"),
        (put("categories", 0, "id", "5"), "has \"5\" as 'id'"),
        (put("annotations", 1, "category_id", "61"), "has \"61\" as 'category_id'"),
        (put("annotations", 1, "category_id", 4), "has category_id 4, which no entry of 'categories' has"),
        (put("annotations", 1, "image_id", 4), "has image_id 4, which no entry of 'images' has"),
        (put("annotations", 1, "id", 100), "2 entries of 'annotations' with id 100"),
        (put("annotations", 1, "bbox", [0, 0, float("nan"), 5]), r"has \[0, 0, NaN, 5\] as 'bbox'"),
        (put("annotations", 1, "bbox", [0, 0, -1, 5]), r"has \[0, 0, -1, 5\] as 'bbox', .* no side negative"),
        (put("annotations", 1, "bbox", [0, 0, 10**400, 5]), "as 'bbox', which must be"),
        (put("annotations", 1, "bbox", [1, 2, 3]), r"has \[1, 2, 3\] as 'bbox'"),
        (put("annotations", 1, "iscrowd", 2), "has 2 as 'iscrowd', which must be 0 or 1"),
        (put("annotations", 1, "area", float("inf")), "has Infinity as 'area'"),
        (lambda content: content.update(images={"0": {}}), "have no list of 'images'"),
        (lambda content: content.update(annotations=[]), "have no 'annotations'"),
        (lambda content: content.update(categories=[5]), r"categories\[0\] is not an object but 5"),
        (lambda content: content.pop("categories"), "have no 'categories'"),
    ],
)
def test_k3_entries_are_checked(change, expected, root):
    edit(root, change)
    with pytest.raises(UsageError, match=expected) as caught:
        CocoFolder(root)
    assert "instances_val2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [' + "9" * 5000 + "]}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
        ("[1, 2]", "have no 'images'"),
        ("\udcff", "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_annotations_get_a_sentence(text, expected, root):
    (root / ANNOTATIONS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=expected):
        CocoFolder(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_k5_a_fifo_is_no_annotation_file_and_no_image(root):
    """FAULTS K5 "a FIFO, a device or a link to one as record, images, config or cache file"."""
    (root / "val2017/000001.jpg").unlink()
    os.mkfifo(root / "val2017/000001.jpg")
    with pytest.raises(UsageError, match=r"000001.jpg cannot be used: it is a FIFO"):
        CocoFolder(root)
    (root / ANNOTATIONS).unlink()
    (root / ANNOTATIONS).symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"instances_val2017.json cannot be read: it is a device"):
        CocoFolder(root)


def test_k5_folders_that_may_not_be_read_get_a_sentence(root, monkeypatch):
    """FAULTS K5 "folders that may not be read (... `--data-root` ...)"; the tests may run as root, who may read all."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    with pytest.raises(UsageError, match="train2017 cannot be read: Permission denied"):
        CocoFolder(root).calibration_identity()
    monkeypatch.setattr("pathlib.Path.exists", denied)
    with pytest.raises(UsageError, match="root cannot be looked at: Permission denied"):
        CocoFolder(root)


def test_what_may_be_left_out_has_its_usual_value(root):
    def leave_out(content):
        for entry in content["annotations"]:
            del entry["iscrowd"], entry["area"]

    edit(root, leave_out)
    entry = CocoFolder(root).truth(1, FACTS)["annotations"][0]
    assert (entry["iscrowd"], entry["area"]) == (0, entry["bbox"][2] * entry["bbox"][3])


def test_boxes_beyond_their_image_are_said(root):
    """Corners given as sides: finite, not negative, and wrong."""
    edit(root, put("annotations", 3, "bbox", [60, 60, 100, 100]))
    with pytest.warns(UserWarning, match=r"1 boxes reach beyond their images, annotations\[3\] among them"):
        CocoFolder(root)


def test_images_without_an_object_have_no_average_precision(root):
    data = CocoFolder(root)
    assert data.has_objects(1)
    edit(root, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != IDS[0]]))
    data = CocoFolder(root)
    assert not data.has_objects(1)
    assert data.has_objects(2)


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "has no 'segmentation'"),
        ([], "has no 'segmentation'"),
        ([[1, 1, 5, 5]], "has a polygon of 4 numbers"),  # which pycocotools takes for a box
        ([[1, 1, 5, 5, 5, 1, 2]], "has a polygon of 7 numbers"),
        ([1, 1, 5, 5, 5, 1], "has a polygon in its"),
        ([[1, 1, 5, float("nan"), 5, 1]], "not a finite number"),
        ({"size": [64, 128], "counts": [64 * 128]}, r"mask of size \[64, 128\], but its image is \[128, 128\]"),
        ({"size": [128, 128], "counts": [5, 5]}, "run lengths of other than its image's 16384 pixels"),
        ({"size": [128, 128], "counts": [-1, 128 * 128 + 1]}, "run lengths .* that cannot be read"),
        ({"size": [128, 128], "counts": "zz"}, "run lengths .* that cannot be read"),
        ({"size": [128, 128], "counts": ""}, "run lengths of other than"),
        ({"counts": [128 * 128]}, "neither polygons nor run lengths"),
        ("0 1 2", "neither polygons nor run lengths"),
    ],
)
def test_k3_masks_are_checked_where_they_are_evaluated(mask, expected, root):
    """FAULTS K3 "COCO without `segmentation` under Mask R-CNN": KeyError 'rle'."""
    edit(root, put("annotations", 0, "segmentation", mask))
    with pytest.raises(UsageError, match=rf"annotations\[0\] \(id 100\) .*{expected}"):
        opened(root)
    opened(root, masks=False)  # boxes alone need none


def test_masks_of_all_forms_are_taken():
    mask = np.zeros((9, 7), bool)
    mask[2:6, 1:5] = mask[4, 6] = True
    compressed = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {**compressed, "counts": compressed["counts"].decode()}
    for form in (coco.run_lengths(mask), text, [[1, 1, 5, 1, 5, 5.5]]):
        assert mask_fault(form, (9, 7)) == ""
    # COCO's text ends anywhere: what is left out counts as missing, which its reader would make up from memory.
    assert mask_fault({**text, "counts": text["counts"][:-1]}, (9, 7)) != ""


# --- files --------------------------------------------------------------------------------------------------------


def test_k3_a_file_name_with_its_folder_is_found(root):
    """FAULTS K3 `file_name: "val2017/000.jpg"`."""

    def with_folder(content):
        for image in content["images"]:
            image["file_name"] = f"val2017/{image['file_name']}"

    before = CocoFolder(root).picture(1)
    edit(root, with_folder)
    assert np.array_equal(opened(root).picture(1), before)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/hostname", "val2017/../../x.jpg", "C:\\x.jpg", "..\\x.jpg", "", "a\0b", 5]
)
def test_file_names_stay_below_the_root(name, root):
    edit(root, put("images", 0, "file_name", name))
    with pytest.raises(UsageError, match="as 'file_name', which must be the name of a file below the data root"):
        CocoFolder(root)


def test_links_to_images_elsewhere_are_followed(root, tmp_path):
    image = root / "val2017/000001.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    opened(root)


@pytest.mark.filterwarnings("ignore:model 'm' does not know")
def test_sizes_that_contradict_the_image_are_named(root):
    edit(root, put("images", 1, "height", 120))
    with pytest.raises(UsageError, match=r"000001.jpg is 128x96 .* say 128x120"):
        CocoFolder(root).check_model("m", FACTS, masks=False)


@pytest.mark.filterwarnings("ignore:model 'm' does not know", "ignore:.*reach beyond their images")
def test_images_turned_by_exif_count_as_they_are_loaded(root):
    """OpenCV turns them, unless the pipeline says not to; boxes have to be of what the model sees."""
    path = root / "val2017/000001.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = 6
        image.save(path, exif=exif)
    with pytest.raises(UsageError, match=r"000001.jpg is 96x128 .* say 128x96"):
        CocoFolder(root).check_model("m", FACTS, masks=False)
    edit(root, lambda content: content["images"][1].update(width=96, height=128))
    assert opened(root, masks=False).picture(1).shape == (128, 96, 3)
    lying = Facts(CLASS_NAMES, ({"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"},))
    with pytest.raises(UsageError, match=r"is to be turned \(EXIF orientation 6\)"):
        CocoFolder(root).check_model("m", lying, masks=False)


@pytest.mark.parametrize("kind", ["val2017", "train2017"])
def test_content_identifies_the_data_and_damage_is_named(kind, root):
    """FAULTS K2 "identity by content": as many bytes, other ones."""
    path = root / kind / "000001.jpg"

    def identity():
        data = CocoFolder(root)
        return data.identity() if kind == "val2017" else data.calibration_identity()

    before = identity()
    assert identity() == before
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert identity() != before
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"000001.jpg cannot be used"):
        identity()
