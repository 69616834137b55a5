"""Pseudo-targets and distances of dense tasks, and data-free methods running through them on tiny real transformers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_options import TINY
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.ops import roi_align

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from harness.api.sealing import sealed_data
from harness.api.spec import SCHEMES, BitSpec
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.identity.code import Code
from harness.run.context import Context
from methods.core.calibrate import observe
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import OBSERVERS
from methods.end_to_end.clamp.info import ClampOptions
from methods.sources.psaq.info import PsaqSourceOptions
from methods.sources.psaq.source import Psaq
from tasks.models.openmmlab.losses import (
    DetectionLosses,
    DetectionOutput,
    FixedBoxes,
    SegmentationLosses,
    random_boxes,
    random_label_maps,
)

SIZE, GRID, CLASSES, ANCHORS = 32, 8, 5, 3
FIXED = 6  # images that the fixed boxes are for
TASKS = ("segmentation", "detection", "cascade")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Backbone(nn.Module):
    """A plain ViT whose patch tokens are a feature map (n, 16, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(img_size=SIZE, patch_size=4, num_classes=0, embed_dim=16, depth=2, num_heads=2)
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))


class Segmenter(nn.Module):
    """Convolutions after the transformer, logits at half the image's resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Conv2d(12, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.neck(self.backbone(images)))
        return self.head(functional.interpolate(x, scale_factor=2, mode="bilinear"))


class Detector(nn.Module):
    """RPN on two levels and RoI heads; `stages` > 1 shares box deltas between classes and has no mask head."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.rpn = nn.Conv2d(16, 12, 3, padding=1)
        self.objectness = nn.Conv2d(12, ANCHORS, 1)
        self.anchor_deltas = nn.Conv2d(12, 4 * ANCHORS, 1)
        self.fc = nn.ModuleList(nn.Linear(16 * 9, 24) for _ in range(stages))
        self.classes = nn.ModuleList(nn.Linear(24, CLASSES + 1) for _ in range(stages))
        self.deltas = nn.ModuleList(nn.Linear(24, 4 if stages > 1 else 4 * CLASSES) for _ in range(stages))
        self.mask = nn.Conv2d(16, CLASSES, 3, padding=1) if stages == 1 else None

    def dense_forward(self, images: Tensor, boxes: Tensor) -> DetectionOutput:
        x = self.backbone(images)
        levels = [functional.relu(self.rpn(level)) for level in (x, functional.max_pool2d(x, 2))]
        rois = roi_align(x, list(boxes), 3, GRID / SIZE, 2, True)
        hidden = [functional.relu(fc(rois.flatten(1))) for fc in self.fc]

        def heads(layers: nn.ModuleList) -> Tensor:
            return torch.cat([f(h).unflatten(0, boxes.shape[:2]) for f, h in zip(layers, hidden, strict=True)], dim=1)

        return DetectionOutput(
            tuple(self.objectness(level) for level in levels),
            tuple(self.anchor_deltas(level) for level in levels),
            heads(self.classes),
            heads(self.deltas),
            () if self.mask is None else (self.mask(rois).unflatten(0, boxes.shape[:2]),),
        )


def dense_model(task: str) -> VisionModel:
    torch.manual_seed(0)
    losses: SegmentationLosses | DetectionLosses
    if task == "segmentation":
        losses = SegmentationLosses(CLASSES, (SIZE, SIZE), torch.device("cpu"))
        net: nn.Module = Segmenter()
    else:
        boxes = random_boxes(FIXED, 2, (SIZE, SIZE), rng())
        losses = DetectionLosses(CLASSES, (SIZE, SIZE), boxes)
        net = FixedBoxes(Detector(1 if task == "detection" else 3), boxes)
    net.eval().requires_grad_(False)
    for module in net.modules():  # enlarged, so that outputs differ between images
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.mul_(2.0)
    return VisionModel(
        name=f"tiny-{task}",
        task=task,
        net=net,
        input_shape=(3, SIZE, SIZE),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.2),
        num_classes=CLASSES,
        sample_targets=losses.sample_targets,
        target_loss=losses.target_loss,
        output_distance=losses.output_distance,
    )


def images(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=rng(seed))


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def test_an_image_has_its_boxes_in_every_batch():
    net, x = dense_model("detection").net, images(FIXED + 2)
    whole = net(x)
    order = torch.tensor([FIXED + 1, 0, 3])
    part = ImageSet.whole(x)[order].through(net)
    with pytest.raises(ValueError, match="3 image numbers for 2 images"):
        ImageSet(x[:2], order)
    assert all(
        torch.allclose(a[order], b, atol=1e-5) for a, b in zip(tree_leaves(whole), tree_leaves(part), strict=True)
    )
    assert not equal(net(x[order]), part)


def test_calibration_in_batches_sees_each_image_at_its_own_boxes():
    """Observers with small batches see what one large batch would show them."""
    model, x = dense_model("detection"), images(FIXED)
    sites = find_sites(trace(model), "full", BitSpec(4, 8))
    ranges = []
    for batch in (1, FIXED):
        observers = observe(model, x, sites, OBSERVERS["minmax"], batch)
        ranges.append(torch.tensor([observers[site.point].range(site.bits) for site in sites.activations]))
    assert torch.allclose(*ranges, atol=1e-4)


CALIBRATORS = {
    "minmax": {"batch": 2},
    "fqvit": {"batch": 2},
    "noisyquant": {"batch": 2},
    "evolq": {"fitness_batch": 2},
    "ptq4vit": {"batch": 2},
    "qdrop": {"batch": 2, "steps": 3},
    "clamp-search": {},
}


@pytest.mark.fast(name="minmax")
@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_see_each_image_at_its_own_boxes(name, tmp_path, monkeypatch):
    model, x = dense_model("detection"), images(FIXED)
    original, own, foreign = Detector.dense_forward, [], []

    def watched(self, batch, boxes):
        for image, given in zip(batch.detach(), boxes, strict=True):
            number = [i for i in range(len(x)) if torch.equal(image, x[i])]
            if number:  # neither what traces are made with nor an image that is quantized
                (own if torch.equal(given, model.net.boxes[number[0]]) else foreign).append(number[0])
        return original(self, batch, boxes)

    monkeypatch.setattr(Detector, "dense_forward", watched)
    info = Catalog.default().calibrators.get(name)
    calibrator = info.load()(info.resolve("quick", CALIBRATORS[name]))
    scheme = "matmul" if name in {"noisyquant", "ptq4vit"} else "full"
    calibrator.calibrate(model, x, spec=BitSpec(4, 8), scheme=scheme, ctx=context(model, tmp_path, name))
    assert set(own) == set(range(FIXED))
    assert not foreign


# --- targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (14, 6)])
def test_label_maps_are_coarse_grids_and_their_own_mirror_images(size):
    maps = random_label_maps(40, 100, size, rng())
    assert maps.shape == (40, *size)
    assert maps.dtype == torch.int64
    assert set(maps.unique().tolist()) <= set(range(100))
    assert torch.equal(maps, maps.flip(-1))
    rows = [1 + int((m[1:] != m[:-1]).any(1).sum()) for m in maps]  # with 100 classes nearly every cell is a new one
    assert set(rows) == {2, 3, 4, 5}


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_boxes_lie_in_the_image_and_come_with_their_mirror_images(size):
    height, width = size
    boxes = random_boxes(50, 2, size, rng())
    assert boxes.shape == (50, 4, 4)
    left, top, right, bottom = boxes.unbind(-1)
    assert bool((left >= 0).all() and (top >= 0).all() and (right <= width + 1e-4).all() and (bottom <= height).all())
    for length, whole in ((right - left, width), (bottom - top, height)):
        assert 0.2 * whole - 1e-3 <= float(length.min()) < 0.3 * whole
        assert 0.6 * whole < float(length.max()) <= 0.7 * whole + 1e-3
    mirrored = torch.stack([width - right, top, width - left, bottom], -1)
    torch.testing.assert_close(mirrored[:, :2], boxes[:, 2:])


@pytest.mark.parametrize("task", TASKS)
def test_targets_depend_on_the_generator_alone(task):
    model = dense_model(task)
    again, other = (model.sample_targets(8, rng(seed)) for seed in (3, 4))
    assert equal(model.sample_targets(8, rng(3)), again)
    assert not equal(again, other)


def test_more_targets_than_boxes_cycle_as_the_network_does():
    model = dense_model("detection")
    target = model.sample_targets(FIXED + 2, rng())
    assert target.boxes.shape == (FIXED + 2, 4, 4)
    assert target.classes.shape == (FIXED + 2, 4)
    assert torch.equal(target.boxes[FIXED:], target.boxes[:2])
    assert torch.equal(target.classes[:, :2], target.classes[:, 2:])


# --- network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_stacked_candidates_equal_single_batches(task):
    """K candidates of n images each, and batches smaller than the number of boxes."""
    model = dense_model(task)
    a, b = images(FIXED), images(FIXED, seed=2)
    single = [tree_leaves(model.net(x)) for x in (a, b)]
    both = tree_leaves(model.net(torch.cat([a, b])))
    few = tree_leaves(model.net(a[:2]))
    for together, *apart, first in zip(both, *single, few, strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first, apart[0][:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["detection", "cascade"])
def test_output_shapes(task):
    output = dense_model(task).net(images(2))
    stages = 3 if task == "cascade" else 1
    assert [tuple(t.shape) for t in output.objectness] == [(2, ANCHORS, 8, 8), (2, ANCHORS, 4, 4)]
    assert [tuple(t.shape) for t in output.anchor_deltas] == [(2, 4 * ANCHORS, 8, 8), (2, 4 * ANCHORS, 4, 4)]
    assert output.class_logits.shape == (2, 4 * stages, CLASSES + 1)
    assert output.box_deltas.shape == (2, 4 * stages, 4 if task == "cascade" else 4 * CLASSES)
    assert [tuple(t.shape) for t in output.mask_logits] == ([] if task == "cascade" else [(2, 4, CLASSES, 3, 3)])
    assert all(isinstance(leaf, Tensor) and len(leaf) == 2 for leaf in tree_leaves(output))


def test_boxes_are_no_weights():
    assert not [name for name in dense_model("detection").net.state_dict() if name == "boxes"]


# --- losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_loss_falls_and_its_gradient_reaches_every_image(task):
    model = dense_model(task)
    target = model.sample_targets(4, rng())
    pixels = images(4).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.1)
    curve = []
    for _ in range(20):
        value = model.target_loss(model.net(pixels), target)
        optimizer.zero_grad()
        value.backward()
        assert value.shape == ()
        assert bool((pixels.grad.flatten(1).norm(dim=1) > 0).all())
        optimizer.step()
        curve.append(float(value.detach()))
    assert curve[-1] < 0.9 * curve[0]


def test_segmentation_loss_is_the_cross_entropy_at_the_logits_resolution():
    losses = SegmentationLosses(CLASSES, (4, 4), torch.device("cpu"))
    target = losses.sample_targets(2, rng())
    logits = torch.randn(2, CLASSES, 2, 2, generator=rng())
    small = target[:, 1::2, 1::2]  # of an even number of equally near pixels the later one
    assert torch.allclose(losses.target_loss(logits, small), losses.target_loss(logits, target))
    expected = functional.cross_entropy(logits, small)
    assert float(losses.target_loss(logits, target)) == pytest.approx(float(expected))
    sure = 50.0 * functional.one_hot(target, CLASSES).movedim(-1, 1)
    assert float(losses.target_loss(sure, target)) == pytest.approx(0.0, abs=1e-6)


def perfect(model: VisionModel, losses: DetectionLosses, target: Any) -> DetectionOutput:
    """What a detector answers that sees exactly the target."""
    blank = tree_map(torch.zeros_like, model.net(images(len(target.boxes))))
    sure = functional.one_hot(target.classes, CLASSES + 1) * 50.0
    centre = (torch.arange(GRID) + 0.5) * SIZE / GRID
    seen = []
    for level in blank.objectness:
        step = GRID // level.shape[-1]
        x = centre.unflatten(0, (-1, step)).mean(1)
        for boxes in target.boxes:
            inside = [[any(a <= u <= c and b <= v <= d for a, b, c, d in boxes) for u in x] for v in x]
            seen.append(torch.tensor(inside) * 100.0 - 50.0)
    levels = seen[: len(target.boxes)], seen[len(target.boxes) :]
    objectness = tuple(torch.stack(one)[:, None].expand(-1, ANCHORS, -1, -1) for one in levels)
    return blank._replace(objectness=objectness, class_logits=sure)


def test_a_detector_that_sees_the_target_has_no_loss_and_each_term_counts():
    model = dense_model("detection")
    losses = DetectionLosses(CLASSES, (SIZE, SIZE), model.net.boxes)
    target = losses.sample_targets(FIXED, rng())
    best = perfect(model, losses, target)
    assert float(losses.target_loss(best, target)) == pytest.approx(0.0, abs=1e-5)
    # Nothing said by the RPN, or by the class head: the entropy of two sides, or of all classes.
    silent = best._replace(objectness=tuple(map(torch.zeros_like, best.objectness)))
    assert float(losses.target_loss(silent, target)) == pytest.approx(math.log(2), abs=1e-5)
    blind = best._replace(class_logits=torch.zeros_like(best.class_logits))
    assert float(losses.target_loss(blind, target)) == pytest.approx(math.log(CLASSES + 1), abs=1e-5)
    # Box deltas count for the true class only.
    own = functional.one_hot(target.classes, CLASSES).bool()[..., None].expand(-1, -1, -1, 4).flatten(2)
    deltas = torch.full_like(best.box_deltas, 2.0)
    assert float(losses.target_loss(best._replace(box_deltas=deltas * ~own), target)) == pytest.approx(0.0, abs=1e-5)
    assert float(losses.target_loss(best._replace(box_deltas=deltas * own), target)) == pytest.approx(1.5, abs=1e-5)


def test_rpn_loss_without_any_anchor_in_a_box_is_finite():
    model = dense_model("detection")
    losses = DetectionLosses(CLASSES, (SIZE, SIZE), model.net.boxes)
    target = losses.sample_targets(2, rng())
    outside = target._replace(boxes=-torch.ones_like(target.boxes))
    assert math.isfinite(float(losses.target_loss(model.net(images(2)), outside)))


# --- distances --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_distance_is_zero_at_equality_and_positive_otherwise(task):
    model = dense_model(task)
    output = model.net(images(4))
    assert float(model.output_distance(output, output)) == pytest.approx(0.0, abs=1e-6)
    near, far = (tree_map(lambda t, s=s: t + s * torch.randn(t.shape, generator=rng()), output) for s in (0.01, 0.3))
    distances = [float(model.output_distance(x, output)) for x in (near, far)]
    assert 0 < distances[0] < distances[1]


def test_segmentation_distance_is_the_kl_of_the_float_model_to_the_quantized():
    q, r = (torch.randn(2, CLASSES, 3, 4, generator=rng(seed)) for seed in (0, 1))
    p = r.softmax(1)
    expected = (p * (p.log() - q.softmax(1).log())).sum(1).mean()
    losses = SegmentationLosses(CLASSES, (SIZE, SIZE), torch.device("cpu"))
    assert float(losses.output_distance(q, r)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("field", ["objectness", "anchor_deltas", "box_deltas", "mask_logits"])
def test_each_term_is_relative_to_its_own_spread(field):
    """An answer that is always the mean is 1 away in its term, one of four, whatever the unit."""
    model = dense_model("detection")
    output = model.net(images(4))
    for unit in (1.0, 100.0):
        scaled = output._replace(**{field: tree_map(lambda t, u=unit: t * u, getattr(output, field))})
        leaves = tree_leaves(getattr(scaled, field))
        mean = torch.cat([t.flatten() for t in leaves]).mean()
        flat = scaled._replace(**{field: tree_map(lambda t, m=mean: torch.full_like(t, m), getattr(scaled, field))})
        assert float(model.output_distance(flat, scaled)) == pytest.approx(0.25, abs=1e-5)


# --- methods, unchanged, on dense models ------------------------------------------------------------------------


def context(model: VisionModel, folder: Any, method: str) -> Context:
    cell = Cell(
        suite="tiny",
        task=model.task,
        model=model.name,
        weights="w",
        data="d",
        limit=None,
        method=method,
        options={},
        bits="W4A6",
        scheme="full",
        seed=0,
    )
    code = Code("c", ())
    return Context(
        cell,
        cache=folder,
        code=code,
        code_of=lambda _: code,
        device=torch.device("cpu"),
        threads=1,
        report=lambda *_: None,
    )


def quantize(model: VisionModel, folder: Any, method: str, scheme: str, **options: Any) -> tuple[Any, Context]:
    ctx = context(model, folder, method)
    built = Catalog.default().resolve(method, "quick", {method.partition("+")[0]: options}).build()
    with sealed_data(method):
        quantized = built.quantize(model, spec=BitSpec.parse("W4A6"), scheme=scheme, calib=None, ctx=ctx)
    return quantized, ctx


def check(model: VisionModel, quantized: Any, before: dict[str, Tensor]) -> None:
    x = images(3, seed=5)
    output, reference = quantized(x), model.net(x)
    assert [t.shape for t in tree_leaves(output)] == [t.shape for t in tree_leaves(reference)]
    assert all(bool(torch.isfinite(t).all()) for t in tree_leaves(output))
    assert float(model.output_distance(output, reference)) > 0
    assert equal(before, dict(model.net.state_dict()))
    parameters = dict(model.net.named_parameters())
    assert {layer.name for layer in quantized.summary.layers} == {n for n, p in parameters.items() if is_weight(n, p)}


def is_weight(name: str, parameter: Tensor) -> bool:
    return name.endswith("weight") and parameter.ndim > 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("task", TASKS)
def test_psaq_runs_on_dense_models(task, scheme, tmp_path):
    model = dense_model(task)
    before = copy.deepcopy(dict(model.net.state_dict()))
    quantized, ctx = quantize(model, tmp_path, "psaq+minmax", scheme, images=4, rounds=1, steps=4)
    check(model, quantized, before)
    assert ctx.counters["synthesis_steps"] == 4


@pytest.mark.fast(task="detection")
@pytest.mark.parametrize("source", ["sardfq", "fdd", "mimiq", "maskaq"])
@pytest.mark.parametrize("task", TASKS)
def test_other_sources_run_on_dense_models(task, source, tmp_path):
    model = dense_model(task)
    before = copy.deepcopy(dict(model.net.state_dict()))
    quantized, _ = quantize(model, tmp_path, f"{source}+minmax", "full", images=4, rounds=1, steps=2)
    check(model, quantized, before)


@pytest.mark.fast(task="segmentation")
@pytest.mark.parametrize("task", TASKS)
def test_psaq_images_come_closer_to_the_targets(task, tmp_path):
    model = dense_model(task)
    source = Psaq(PsaqSourceOptions(images=4, rounds=1, steps=30, tv_weight=0.0))
    ctx = context(model, tmp_path, "psaq+minmax")
    made = source.images(model, spec=BitSpec.parse("W4A6"), scheme="full", calib=None, ctx=ctx)
    start = torch.randn(made.shape, generator=ctx.generator("calibration-images"))
    low, high = model.pixel_bounds()
    target = model.sample_targets(4, ctx.generator("pseudo-labels"))
    before, after = (float(model.target_loss(model.net(x), target)) for x in (start.clamp(low, high), made))
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("task", TASKS)
def test_clamp_runs_on_dense_models(task, scheme, tmp_path):
    model = dense_model(task)
    before = copy.deepcopy(dict(model.net.state_dict()))
    small = {k: v for k, v in TINY.items() if k in ClampOptions.model_fields}
    quantized, ctx = quantize(model, tmp_path, "clamp", scheme, **small)
    check(model, quantized, before)
    assert ctx.counters["candidates"] > 0
