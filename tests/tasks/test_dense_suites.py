"""Suites of detection and segmentation: embedded scenes, and COCO and ADE20K in miniature on disk."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import later
from miniature_data import (
    IDS,
    SIZES,
    detection_config,
    make_ade,
    make_coco,
    make_scenes,
    segmentation_config,
    zoo_config,
)
from safetensors.torch import load_file
from torch.utils import _pytree as pytree
from typer.testing import CliRunner

from harness.api.errors import DataFreeViolation, UsageError
from harness.api.sealing import sealed_data
from harness.cli.main import app
from methods.core.graph.intercept import Interceptor
from tasks.metrics.average_precision import average_precision_of
from tasks.metrics.mean_iou import mean_iou_of
from tasks.models.openmmlab import ops
from tasks.models.openmmlab.models import build_random, read_config
from tasks.suites.embedded import dense_zoo
from tasks.suites.embedded.dense_dataset import CLASS_NAMES

for package in ("mmdet", "mmseg", "mmcv", "faster_coco_eval"):
    pytest.importorskip(package, exc_type=ImportError)

from tasks.detection import suite as mmdet_det  # noqa: E402
from tasks.segmentation import suite as mmseg_seg  # noqa: E402
from tasks.suites.ade20k.dataset import AdeFolder  # noqa: E402
from tasks.suites.coco.dataset import CocoFolder  # noqa: E402

# The configs of these tests are in Python.
open_detection = partial(mmdet_det.open_suite, trust_configs=True)
open_segmentation = partial(mmseg_seg.open_suite, trust_configs=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def ade_root(tmp_path_factory):
    return make_ade(tmp_path_factory.mktemp("ade") / "ADEChallengeData2016")


def saved(config, library, path):
    """Random weights as a checkpoint that OpenMMLab would write: a state dict beside its meta data."""
    net = build_random(library, read_config(config), seed=1)
    torch.save({"meta": {"epoch": 3}, "state_dict": net.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    config = detection_config(folder / "small.py")
    return f"mmdet:{config}@{saved(config, 'mmdet', folder / 'small.pth')}"


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentor")
    config = segmentation_config(folder / "small.py")
    return f"mmseg:{config}@{saved(config, 'mmseg', folder / 'small.pth')}"


def theirs(library, reference, metric, **dataset):
    """What mmdet or mmseg themselves say of a model, by the loop of their tools/test.py."""
    ops.install()
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    config, weights = reference.partition(":")[2].split("@")
    config = read_config(Path(config))
    config.test_dataloader.dataset.update(dataset)
    with DefaultScope.overwrite_default_scope(library):
        net = build_random(library, config)
        net.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
        loader = Runner.build_dataloader(config.test_dataloader)
        evaluator = Evaluator(metric)
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.no_grad():
            for batch in loader:
                evaluator.process(data_samples=net.test_step(batch), data_batch=batch)
        return evaluator.evaluate(len(loader.dataset))


# --- detection ----------------------------------------------------------------------------------------------------


def test_detection_metrics_are_mmdets(coco_root, detector):
    suite = open_detection("coco", coco_root)
    model = suite.load(detector, CPU)
    own = suite.evaluate(model, model.net, None)
    metric = {
        "type": "CocoMetric",
        "ann_file": str(coco_root / "annotations/instances_val2017.json"),
        "metric": ["bbox", "segm"],
    }
    files = {"ann_file": "annotations/instances_val2017.json", "data_prefix": {"img": "val2017/"}, "test_mode": True}
    expected = theirs("mmdet", detector, metric, data_root=str(coco_root), **files)
    for name, key in (("box_ap", "bbox_mAP"), ("box_ap50", "bbox_mAP_50"), ("mask_ap", "segm_mAP")):
        assert own.metrics[name] == pytest.approx(100 * expected[f"coco/{key}"], abs=0.051)  # theirs are rounded
    assert own.metrics["box_ap50"] > 0
    assert len(own.outcomes) == 3
    assert average_precision_of(own.outcomes)(np.ones((1, 3)))[0] == pytest.approx(own.metrics["box_ap"])
    masks = own.outcomes.filter(like="mask_").rename(columns=lambda name: name.removeprefix("mask_"))
    assert average_precision_of(masks)(np.ones((1, 3)))[0] == pytest.approx(own.metrics["mask_ap"])
    for pictures in own.pictures.values():
        assert (pictures.dtype, pictures.shape[0], pictures.shape[3]) == (np.uint8, 3, 3)


def test_truth_is_renumbered_in_the_models_terms(coco_root, detector):
    suite = open_detection("coco", coco_root)
    facts = suite.load(detector, CPU).facts
    truth = CocoFolder(coco_root).truth(2, facts)
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert [c["name"] for c in truth["categories"]] == list(facts.classes)
    given = json.loads((coco_root / "annotations/instances_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in given["categories"]}
    expected = [names[a["category_id"]] for a in given["annotations"] if a["image_id"] in IDS[:2]]
    found = {c["id"]: c["name"] for c in truth["categories"]}
    assert [found[a["category_id"]] for a in truth["annotations"]] == [n for n in expected if n != "umbrella"]
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))


def test_calibration_images_are_training_images(detector, tmp_path):
    root = make_coco(tmp_path / "coco")
    suite = open_detection("coco", root)
    model = suite.load(detector, CPU)
    for other in ("annotations", "val2017"):  # nothing of them is needed
        shutil.rmtree(root / other)
    images = suite.calibration(model).images(3, torch.Generator().manual_seed(0))
    assert images.shape == (3, 3, 80, 96)  # 64x64, 64x85 and 73x64, up to multiples of 16
    assert images.isfinite().all()
    with sealed_data("psaq"), pytest.raises(DataFreeViolation):
        suite.calibration(model)
    with pytest.raises(UsageError, match=r"4 calibration images .* 1 to 3"):
        suite.calibration(model).images(4, torch.Generator())


def test_models_without_published_weights_run_only_when_named(coco_root):
    suite = open_detection("coco", coco_root)
    assert tuple(suite.models()) == ("mask_rcnn_swin_t", "mask_rcnn_swin_s")
    assert "cascade_mask_rcnn_swin_t" in suite.known.known


@pytest.mark.slow
def test_names_and_identities_follow_content_not_place(coco_root, detector, tmp_path):
    suite = open_detection("coco", coco_root)
    config, weights = detector.removeprefix("mmdet:").split("@")
    moved = f"mmdet:{shutil.copy(config, tmp_path / 'small.py')}@{shutil.copy(weights, tmp_path / 'other.pth')}"
    assert suite.model_identity(moved) == suite.model_identity(detector)
    assert suite.canonical_name(moved) == suite.canonical_name(detector)
    assert suite.canonical_name(detector) == f"mmdet:small@{suite.model_identity(detector)[:8]}"
    changed = detection_config(tmp_path / "changed.py")
    changed.write_text(changed.read_text().replace("(96, 64)", "(128, 64)"))
    assert suite.model_identity(f"mmdet:{changed}@{weights}") != suite.model_identity(detector)
    assert suite.canonical_name(f"mmdet:{config}@random") == "mmdet:small@random"
    other = shutil.copytree(coco_root, tmp_path / "coco")
    assert open_detection("coco", other).data_identity() == suite.data_identity()
    with (other / "val2017/000000.jpg").open("ab") as file:
        file.write(b"x")
    assert open_detection("coco", other).data_identity() != suite.data_identity()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("annotations/instances_val2017.json", "annotations/instances_val2017.json .annotations of evaluation."),
        ("val2017", "val2017 .images of evaluation."),
        ("val2017/000001.jpg", "name 1 images that are not in .*val2017, 000001.jpg"),
    ],
)
def test_what_is_missing_of_coco_is_said(name, expected, tmp_path):
    root = make_coco(tmp_path / "coco")
    path = root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match=expected):
        open_detection("coco", root)


def test_k3_data_free_methods_need_no_training_images(tmp_path):
    """FAULTS K3 "`--suite imagenet` without `train/`, data-free methods": the same of the dense suites."""
    for make, training, open_suite, suite in (
        (make_coco, "train2017", open_detection, "coco"),
        (make_ade, "images/training", open_segmentation, "ade20k"),
    ):
        root = make(tmp_path / suite)
        before = open_suite(suite, root)
        shutil.rmtree(root / training)
        after = open_suite(suite, root)
        assert after.data_identity() == before.data_identity()
        with pytest.raises(UsageError, match=rf"has no {training}/ .images of calibration."):
            after.calibration_identity()


def test_broken_annotations_get_a_sentence(tmp_path):
    root = make_coco(tmp_path / "coco")
    file = root / "annotations/instances_val2017.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        open_detection("coco", root)
    file.write_text("{}")
    with pytest.raises(UsageError, match="have no 'images'"):
        open_detection("coco", root)


# --- segmentation -------------------------------------------------------------------------------------------------


def slide(path):
    mode = 'model = dict(test_cfg=dict(_delete_=True, mode="slide", crop_size=(48, 48), stride=(32, 32)))\n'
    return segmentation_config(path, extra=mode.replace("model = dict(", "model.update("))


@pytest.mark.fast(mode="whole")
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_segmentation_metrics_are_mmsegs(mode, ade_root, segmentor, tmp_path):
    if mode == "slide":
        segmentor = f"mmseg:{slide(tmp_path / 'slide.py')}@{segmentor.partition('@')[2]}"
    suite = open_segmentation("ade20k", ade_root.parent)  # the folder that holds ADE20K's own
    model = suite.load(segmentor, CPU)
    own = suite.evaluate(model, model.net, None)
    prefix = {"img_path": "images/validation", "seg_map_path": "annotations/validation"}
    metric = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}
    expected = theirs("mmseg", segmentor, metric, data_root=str(ade_root), data_prefix=prefix)
    assert own.metrics["miou"] == pytest.approx(expected["mIoU"], abs=0.0051)
    assert own.metrics["miou"] > 0
    assert {"iou_background", "iou_bag"} <= own.metrics.keys()
    assert mean_iou_of(own.outcomes)(np.ones((1, 3)))[0] == pytest.approx(own.metrics["miou"])
    pixels = [np.sum(confusion) for confusion in own.outcomes["confusion"]]
    assert pixels == [height * width - 5 * width for height, width in SIZES]


def test_pixels_where_a_model_is_broken_are_wrong(ade_root, segmentor):
    suite = open_segmentation("ade20k", ade_root)
    model = suite.load(segmentor, CPU)
    broken = suite.evaluate(model, lambda images: torch.full_like(model.net(images), torch.nan), 1)
    assert broken.metrics["miou"] == 0


def test_label_maps_are_checked(ade_root, segmentor):
    from PIL import Image

    suite = open_segmentation("ade20k", ade_root)
    facts = suite.load(segmentor, CPU).facts
    assert facts.zero_is_none
    labels = AdeFolder(ade_root).label_map(0, facts)
    assert (labels[:5] == 255).all()
    assert labels[5:].max() == 10
    path = ade_root / "annotations/validation/000000.png"
    before = path.read_bytes()
    Image.fromarray(np.full((128, 128), 12, np.uint8)).save(path)
    try:
        with pytest.raises(UsageError, match="has label 11, but the model knows 11 classes"):
            open_segmentation("ade20k", ade_root).model_identity(segmentor)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images/validation", "images/validation .images of evaluation."),
        ("annotations/validation", "annotations/validation .label maps"),
        ("annotations/validation/000002.png", "lacks the label maps of 1 images, 000002.png"),
    ],
)
def test_what_is_missing_of_ade_is_said(name, expected, tmp_path):
    root = make_ade(tmp_path / "ade")
    path = root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match=expected):
        open_segmentation("ade20k", root)


# --- embedded scenes ----------------------------------------------------------------------------------------------


@pytest.mark.fast(name="upernet_vit")
@pytest.mark.parametrize(
    ("open_suite", "name", "metric"),
    [(open_detection, "mask_rcnn_swin", "box_ap"), (open_segmentation, "upernet_vit", "miou")],
)
def test_scenes_are_evaluated_and_parts_are_known(open_suite, name, metric):
    suite = open_suite("embedded")
    model = suite.load(f"{name}@random", CPU)
    assert (model.input_shape, suite.primary_metric) == ((3, 128, 128), metric)
    assert model.mean == pytest.approx((0.5,) * 3)
    assert model.std == pytest.approx((64 / 255,) * 3)
    found = suite.evaluate(model, model.net, 25)  # more than a batch
    again = suite.evaluate(model, copy.deepcopy(model.net), 25)
    assert found.metrics == again.metrics
    assert 0 <= found.metrics[metric] < 30
    assert len(found.outcomes) == 25
    assert [len(pictures) for pictures in found.pictures.values()] == [4, 4]
    assert suite.parts == tuple(model.parts)
    assert model.net.get_submodule(model.restricted("backbone").part) is model.net.get_submodule(
        model.parts["backbone"]
    )
    calibration = suite.calibration(model).images(2, torch.Generator().manual_seed(0))
    assert calibration.shape == (2, 3, 128, 128)
    with pytest.raises(UsageError, match="1 and the 500"):
        suite.check_limit(501)
    with pytest.raises(UsageError, match="brings its own data"):
        open_suite("embedded", "somewhere")


# --- the zoo ------------------------------------------------------------------------------------------------------

COUNT = 24  # scenes, more than a batch


def trained(name):
    """Its suite and the model."""
    if not (dense_zoo.FOLDER / f"{name}.safetensors").is_file():
        pytest.skip(f"{name} has not been trained yet")
    suite = (open_detection if name in dense_zoo.names("detection") else open_segmentation)("embedded")
    return suite, suite.load(name, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", dense_zoo.names())
def test_trained_models_are_as_good_for_openmmlab(name, tmp_path):
    suite, model = trained(name)
    own = suite.evaluate(model, model.net, COUNT)
    root = make_scenes(tmp_path / "scenes", COUNT)
    weights = tmp_path / "weights.pth"
    state = load_file(dense_zoo.FOLDER / f"{name}.safetensors")
    torch.save({"state_dict": {k: v.float() if v.is_floating_point() else v for k, v in state.items()}}, weights)
    reference = f"{zoo_config(tmp_path / 'zoo.py', name)}@{weights}"
    if suite.task == "detection":
        file = "annotations/instances_val2017.json"
        metric = {"type": "CocoMetric", "ann_file": str(root / file), "metric": ["bbox", "segm"]}
        given = {"ann_file": file, "data_prefix": {"img": "val2017/"}, "test_mode": True}
        expected = theirs("mmdet", f"mmdet:{reference}", metric, data_root=str(root), **given)
        for key, theirs_key in (("box_ap", "bbox_mAP"), ("mask_ap", "segm_mAP")):
            assert own.metrics[key] == pytest.approx(100 * expected[f"coco/{theirs_key}"], abs=0.051)
            assert own.metrics[key] > 30
    else:
        prefix = {"img_path": "val2017", "seg_map_path": "labels"}
        metric = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}
        expected = theirs("mmseg", f"mmseg:{reference}", metric, data_root=str(root), data_prefix=prefix)
        assert own.metrics["miou"] == pytest.approx(expected["mIoU"], abs=0.0051)
        assert own.metrics["miou"] > 40


@pytest.mark.fast(name="upernet_vit")
@pytest.mark.parametrize("name", dense_zoo.names())
def test_trained_models_are_the_same_when_intercepted(name):
    suite, model = trained(name)
    plain = suite.evaluate(model, model.net, 4)
    x = suite.calibration(model).images(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = pytree.tree_leaves(model.net(x))
        with Interceptor(model.net, {}):
            intercepted = pytree.tree_leaves(model.net(x))
            again = suite.evaluate(model, model.net, 4)
    assert all(torch.equal(a, b) for a, b in zip(outputs, intercepted, strict=True))
    assert again.metrics == plain.metrics
    assert all(np.array_equal(again.pictures[kind], plain.pictures[kind]) for kind in plain.pictures)


# --- what users get wrong -----------------------------------------------------------------------------------------


def bad_model(text, folder, detector):
    config, weights = detector.removeprefix("mmdet:").split("@")
    (folder / "syntax.py").write_text("model = dict(")
    (folder / "unknown.py").write_text('model = dict(type="NoSuchDetector")')
    (folder / "nothing.py").write_text("x = 1")
    detection_config(folder / "classes.py", classes=CLASS_NAMES[:9])
    detection_config(folder / "names.py", classes=("cat", *CLASS_NAMES[1:]))
    return text.format(folder=folder, config=config, weights=weights)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mmdet:{folder}/none.py@random", "none.py does not exist"),
        ("mmdet:{folder}/syntax.py@random", "syntax.py cannot be read .*SyntaxError"),
        ("mmdet:{folder}/unknown.py@random", "no model that mmdet can build .*NoSuchDetector"),
        ("mmdet:{folder}/nothing.py@random", "nothing.py has no model"),
        ("mmdet:{config}", "names no checkpoint"),
        ("mmdet:{config}@", "names no checkpoint after '@'"),
        ("mmdet:{config}@{folder}/none.pth", "none.pth does not exist"),
        ("mmdet:{config}@{config}", "must end in"),
        ("mmdet:{folder}/classes.py@{weights}", "tells 10 classes apart, but .* 9 classes"),
        ("mmdet:{folder}/names.py@{weights}", "knows the class 'cat', which annotations"),
        ("mask_rcnn_swin_t@{weights}", "has unknown weights|lacks weights|does not fit"),
        ("mask_rcnn", "no mmdet model 'mask_rcnn' in this suite; it has mask_rcnn_swin_t"),
        ("cascade_mask_rcnn_swin_s", "no weights are published for 'cascade_mask_rcnn_swin_s'"),
    ],
)
def test_bad_models_get_a_sentence(text, expected, coco_root, detector, tmp_path):
    suite = open_detection("coco", coco_root)
    with pytest.raises(UsageError, match=expected) as caught:
        suite.model_identity(bad_model(text, tmp_path, detector))
    assert "\n" not in str(caught.value)


def test_models_of_other_kinds_get_a_sentence(coco_root, tmp_path):
    single = tmp_path / "single.py"
    single.write_text(f"_base_ = [{str(detection_config(tmp_path / 'base.py'))!r}]\n" + SINGLE_STAGE)
    with pytest.raises(UsageError, match="is a RetinaNet; only two-stage"):
        open_detection("coco", coco_root).model_identity(f"mmdet:{single}@random")


SINGLE_STAGE = """
model = dict(
    _delete_=True,
    type="RetinaNet",
    backbone=dict(type="ResNet", depth=18, num_stages=4, out_indices=(0, 1, 2, 3)),
    neck=dict(type="FPN", in_channels=[64, 128, 256, 512], out_channels=8, num_outs=5),
    bbox_head=dict(
        type="RetinaHead", num_classes=10, in_channels=8, stacked_convs=1, feat_channels=8,
        anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
    ),
)
"""


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *later([*map(str, arguments)])])


def test_the_command_line_says_what_is_wrong(coco_root, detector, tmp_path):
    common = ["--tasks", "detection", "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    for arguments, expected in (
        (["--suite", "coco"], "suite 'coco' needs the images"),
        (["--suite", "coco", "--data-root", tmp_path / "none"], "is not a folder"),
        (
            ["--suite", "coco", "--data-root", coco_root, "--models", "mask_rcnn_swin"],
            "no mmdet model 'mask_rcnn_swin'",
        ),
        (["--suite", "ade20k", "--data-root", coco_root], "unknown detection suite 'ade20k'"),
        (["--schemes", "full:neck"], "unknown part of detection models in --schemes 'neck'"),
    ):
        result = run(*common, *arguments)
        assert result.exit_code == 2, result.output
        assert expected in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()
    result = run("--schemes", "full:backbone", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "classification models are quantized whole" in " ".join(result.output.split())


@pytest.mark.slow
def test_both_tasks_through_the_command_line(ade_root, segmentor, detector, coco_root, tmp_path):
    """One run each on data on disk: records, tables and pictures are there, and the part is part of the key."""
    bench = partial(run, "--methods", "minmax", "--preset", "quick", "--bits", "W8A8", "--in-process", "--option")
    for task, suite, root, model in (
        ("detection", "coco", coco_root, detector),
        ("segmentation", "ade20k", ade_root, segmentor),
    ):
        out = tmp_path / task
        result = bench("real.images=2", "--tasks", task, "--suite", suite, "--data-root", root, "--models", model,
                       "--schemes", "matmul,matmul:backbone", "--out", out, "--cache", tmp_path / "cache",
                       "--no-references", "--trust-configs", "--methods", "real+minmax", "--threads", 1,
                       "--seeds", 1)  # fmt: skip
        assert result.exit_code == 0, result.output
        records = [json.loads(path.read_text()) for path in out.glob("?" * 64 + ".json")]
        sites = {r["cell"]["scheme"]: r["quantization"]["weight_sites"] for r in records if r["quantization"]}
        assert 0 < sites["matmul:backbone"] < sites["matmul"]
        assert len({record["key"] for record in records}) == 3
        text = (out / "report/comparison.md").read_text()
        assert "scheme matmul:backbone" in text
        assert len(list((out / "report").glob("predictions_*.png"))) == 2
