"""OpenMMLab's models on torchvision's operators."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from harness.api.errors import UsageError
from tasks.models.openmmlab import ops

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def mmcv_ops():
    pytest.importorskip("mmcv", exc_type=ImportError)
    ops.install()
    import mmcv.ops

    return mmcv.ops


def boxes(count: int, size: float) -> torch.Tensor:
    corner = size * torch.rand(count, 2, generator=GENERATOR)
    return torch.cat([corner, corner + size * (0.1 + torch.rand(count, 2, generator=GENERATOR))], dim=1)


def test_nms_is_torchvisions(mmcv_ops):
    found, scores = boxes(200, 50.0), torch.rand(200, generator=GENERATOR)
    dets, kept = mmcv_ops.nms(found, scores, 0.4)
    expected = torchvision.ops.nms(found, scores, 0.4)
    assert 1 < len(expected) < 200
    assert torch.equal(kept, expected)
    assert torch.equal(dets, torch.cat([found, scores[:, None]], dim=1)[expected])


def test_nms_with_offset_counts_the_last_pixel(mmcv_ops):
    # 10x10 pixels each, given by first and last pixel; 60 shared, so IoU is 60 / 140. By corners it is 45 / 117.
    pair, scores = torch.tensor([[0.0, 0.0, 9.0, 9.0], [4.0, 0.0, 13.0, 9.0]]), torch.tensor([0.9, 0.8])
    for threshold, offset, kept in ((0.40, 1, 1), (0.43, 1, 2), (0.40, 0, 2), (0.38, 0, 1)):
        assert len(mmcv_ops.nms(pair, scores, threshold, offset)[1]) == kept


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradient_are_torchvisions(mmcv_ops, aligned, ratio):
    features = torch.randn(2, 3, 16, 20, generator=GENERATOR)
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]]), boxes(5, 40.0)], dim=1)
    weight = torch.randn(5, 3, 7, 5, generator=GENERATOR)
    outputs, gradients = [], []
    for align in (
        lambda x: mmcv_ops.roi_align(x, rois, (7, 5), 0.25, ratio, "avg", aligned),
        lambda x: torchvision.ops.roi_align(x, rois, (7, 5), 0.25, ratio, aligned),
    ):
        leaf = features.clone().requires_grad_()
        outputs.append(align(leaf))
        (outputs[-1] * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*outputs)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_other_operators_name_themselves(mmcv_ops):
    extension = sys.modules[ops.NAME]
    if not isinstance(extension, ops._StandIn):
        pytest.skip("a compiled mmcv is installed")
    with pytest.raises(NotImplementedError, match="modulated_deform_conv_forward"):
        extension.modulated_deform_conv_forward(torch.zeros(1))
    features, rois = torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
    with pytest.raises(NotImplementedError, match="'max'"):
        mmcv_ops.roi_align(features, rois, (2, 2), 1.0, 0, "max", True)


def test_a_compiled_mmcv_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, ops.NAME, raising=False)
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    ops.install()
    assert ops.NAME not in sys.modules


def test_without_mmcv_a_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'mmcv'")

    monkeypatch.delitem(sys.modules, ops.NAME, raising=False)
    monkeypatch.setattr(ops.importlib.util, "find_spec", missing)
    with pytest.raises(UsageError, match=r"No module named .mmcv.*extra .dense."):
        ops.install()


@pytest.mark.slow
def test_nothing_but_a_dense_run_imports_openmmlab():
    code = (
        "import sys, tasks.models.openmmlab.samples, tasks.detection.suite, tasks.segmentation.suite; "
        "import tasks.suites.embedded.dense_dataset; "
        "import harness.cli.main, typer.testing as t; run = t.CliRunner().invoke; "
        "assert run(harness.cli.main.app, ['list', 'tasks']).output; "
        "assert not run(harness.cli.main.app, ['plan', '--methods', 'minmax']).exit_code; "
        "sys.exit(any(name.partition('.')[0] in ('mmcv', 'mmengine', 'mmdet', 'mmseg') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samples_carry_truth_and_predictions():
    pytest.importorskip("mmseg", exc_type=ImportError)
    pytest.importorskip("mmdet", exc_type=ImportError)
    ops.install()
    from mmengine.structures import InstanceData, PixelData

    from tasks.models.openmmlab import samples

    masks = np.zeros((2, 8, 8), bool)
    masks[:, 2:5, 1:4] = True
    truth = SimpleNamespace(
        boxes=np.array([[1, 2, 4, 5]] * 2, np.float32), classes=np.array([3, 0]), masks=masks, scores=None
    )
    sample = samples.detection_sample((8, 8), truth)
    assert sample.gt_instances.labels.tolist() == [3, 0]
    assert (sample.gt_instances.masks.masks == masks).all()
    sample.pred_instances = InstanceData(
        bboxes=torch.ones(1, 4), labels=torch.tensor([2]), scores=torch.tensor([0.5]), masks=torch.ones(1, 8, 8) > 0
    )
    found = samples.to_detections(sample)
    assert (found.classes.tolist(), found.scores.tolist(), found.masks.shape) == ([2], [0.5], (1, 8, 8))

    segmented = samples.segmentation_sample((8, 8), np.full((8, 8), 4, np.uint8))
    assert segmented.gt_sem_seg.data.dtype == torch.int64
    segmented.pred_sem_seg = PixelData(data=torch.full((1, 8, 8), 2))
    assert (samples.to_label_map(segmented) == 2).all()
