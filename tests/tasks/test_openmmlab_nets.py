"""mmdet's and mmseg's models as networks for methods: small ones, and the packaged configs that papers use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from harness.api.contracts import VisionModel
from harness.api.errors import UsageError
from harness.api.spec import SCHEMES, BitSpec
from harness.catalog.catalog import Catalog
from methods.core.graph.attention import find_attention
from methods.core.graph.intercept import Interceptor, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks, patch_grid, to_grid
from methods.core.graph.trace import trace
from methods.core.numerics.quantizers import Uniform
from tasks.models.openmmlab import ops
from tasks.models.openmmlab.losses import DetectionLosses, SegmentationLosses, random_boxes
from tasks.models.openmmlab.nets import DetectionNet, SegmentationNet
from tasks.segmentation.suite import SegmentationSuite

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from tiny_networks import FakeContext
from tiny_options import TINY

mmdet = pytest.importorskip("mmdet", exc_type=ImportError)
mmseg = pytest.importorskip("mmseg", exc_type=ImportError)
pytest.importorskip("mmcv", exc_type=ImportError)
ops.install()

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

SIZE, CLASSES = 64, 5
SMALL = {**TINY, "images": 2, "population": 2, "passes": 1, "refresh": "never", "alternations": 1}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 2, size: tuple[int, int] = (SIZE, SIZE), seed: int = 1) -> Tensor:
    return torch.randn(n, 3, *size, generator=rng(seed))


# --- models -----------------------------------------------------------------------------------------------------


def build(config: Any, library: str) -> nn.Module:
    """The model with torch's own random weights; BatchNorm does something."""
    for part in (config, config.backbone):
        part.pop("init_cfg", None)
        part.pop("pretrained", None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library):
        net = importlib.import_module(f"{library}.registry").MODELS.build(config)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.2)
    return net.eval()


def packaged(module: Any, name: str) -> Any:
    return Config.fromfile(Path(module.__file__).parent / ".mim/configs" / name).model


def zoo(name: str) -> Any:
    return Config.fromfile(Path(__file__).parents[2] / f"tasks/suites/embedded/dense_configs/{name}.py").model


def cascade_swin_small() -> Any:
    """What mmdet has no file for: its Cascade Mask R-CNN with the Swin-S of its Mask R-CNN."""
    config = packaged(mmdet, "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py")
    swin = packaged(mmdet, "swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py")
    config.backbone, config.neck = swin.backbone, swin.neck
    return config


def small_cascade() -> Any:
    """The zoo's detector with two stages, boxes by class, two convolutions before the RPN and a mask head each."""
    config = zoo("mask_rcnn_swin")
    heads = config.roi_head
    heads.type, heads.num_stages, heads.stage_loss_weights = "CascadeRoIHead", 2, [1, 0.5]
    heads.bbox_head = [dict(heads.bbox_head, reg_class_agnostic=True) for _ in range(2)]
    config.train_cfg.rcnn = [config.train_cfg.rcnn] * 2
    config.rpn_head.num_convs = 2
    return config


MODELS: dict[str, tuple[str, Callable[[], Any]]] = {
    "mask": ("mmdet", lambda: zoo("mask_rcnn_swin")),
    "cascade": ("mmdet", small_cascade),
    "swin": ("mmseg", lambda: zoo("upernet_swin")),
    "vit": ("mmseg", lambda: zoo("upernet_vit")),
}
PACKAGED: dict[str, tuple[str, Callable[[], Any]]] = {
    "Mask R-CNN Swin-T": ("mmdet", lambda: packaged(mmdet, "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py")),
    "Cascade Mask R-CNN Swin-S": ("mmdet", cascade_swin_small),
    "UperNet Swin-T": (
        "mmseg",
        lambda: packaged(mmseg, "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"),
    ),
    "UperNet DeiT-S": ("mmseg", lambda: packaged(mmseg, "vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py")),
}


def wrapped(library: str, config: Any) -> VisionModel:
    model, size = build(config, library), (SIZE, SIZE)
    losses: DetectionLosses | SegmentationLosses
    if library == "mmdet":
        head = model.roi_head.bbox_head
        boxes = random_boxes(2, 2, size, rng())
        losses = DetectionLosses((head[0] if isinstance(head, nn.ModuleList) else head).num_classes, size, boxes)
        net: nn.Module = DetectionNet(model, boxes)
    else:
        losses = SegmentationLosses(model.decode_head.num_classes, size, torch.device("cpu"))
        net = SegmentationNet(model)
    return VisionModel(
        name="dense",
        task="detection" if library == "mmdet" else "segmentation",
        net=net,
        input_shape=(3, *size),
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        num_classes=losses.classes,
        sample_targets=losses.sample_targets,
        target_loss=losses.target_loss,
        output_distance=losses.output_distance,
        parts=net.parts,
    )


@pytest.fixture(scope="module", params=MODELS)
def small(request) -> tuple[str, VisionModel]:
    library, config = MODELS[request.param]
    return request.param, wrapped(library, config())


def quantize(name: str, model: VisionModel, scheme: str) -> Any:
    catalog = Catalog.default()
    infos = catalog.resolve(name).infos
    overrides = {i.name: {k: v for k, v in SMALL.items() if k in i.options.model_fields} for i in infos}
    method = catalog.resolve(name, "quick", {k: v for k, v in overrides.items() if v}).build()
    return method.quantize(model, spec=BitSpec(8, 8), scheme=scheme, calib=None, ctx=FakeContext())


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))


@torch.no_grad()
def check_interception(net: nn.Module, x: Tensor) -> None:
    plain = net(x)
    with Interceptor(net, {}):
        assert same(net(x), plain)


# --- small models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(SIZE, SIZE), (80, 48)])
def test_interception_is_bit_identical(small, size):
    check_interception(small[1].net, images(3, size))


def test_every_layer_is_a_site(small):
    name, model = small
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    wanted = {f"{n}.weight" for n, m in model.net.named_modules() if isinstance(m, layers)}
    graph = trace(model)
    for scheme in SCHEMES:
        sites = find_sites(graph, scheme, BitSpec(8, 8))
        assert {site.parameter for site in sites.weights} == wanted
    up = [site for site in sites.weights if site.axis == 1]
    assert len(up) == {"mask": 1, "cascade": 2}.get(name, 0)


def test_k1_resized_maps_are_rounded_before_a_convolution():
    """FAULTS K1 "upernet_vit ... bilinear resize between two sites: the convolution behind it sees 634 values"."""
    library, config = MODELS["vit"]
    model = wrapped(library, config())
    sites = find_sites(trace(model), "full", BitSpec(8, 4))
    assert {f"segmentor.neck.convs.{i}.conv/conv.0:in0" for i in (0, 1, 2)} <= {str(s) for s in sites.activations}


def test_blocks_and_attention_are_the_backbones(small):
    name, model = small
    graph, x = trace(model), images()
    blocks, attention = find_blocks(graph), find_attention(graph)
    backbone = model.net.get_submodule(model.parts["backbone"])
    modules = [b for stage in backbone.stages for b in stage.blocks] if name != "vit" else list(backbone.layers)
    assert [model.net.get_submodule(block.path) for block in blocks] == modules
    layers = [module.attn if name != "vit" else module.attn.attn for module in modules]
    if name == "vit":
        assert [(a.heads, a.windows, a.prefix) for a in attention] == [(layer.heads, 1, 1) for layer in layers]
    else:
        windows = [layer.w_msa for layer in layers]
        assert [(a.heads, a.prefix, a.grid) for a in attention] == [(w.num_heads, 0, w.window_size) for w in windows]

    outputs: list[Any] = []
    handles = [layer.register_forward_hook(lambda *seen: outputs.append(seen[-1])) for layer in layers]
    _, found = tap(model.net, x, [block.branch for block in blocks])
    for handle in handles:
        handle.remove()
    for block, output in zip(blocks, outputs, strict=True):
        # Windows are back in the image where `attn` ends; within mmcv's attention tokens come first.
        expected = output[0].transpose(0, 1) if name == "vit" else output
        assert torch.equal(found[block.branch], expected)
        n, rows, columns, _ = to_grid(found[block.branch], patch_grid(graph)).shape
        assert (n, rows) == (2, columns)


@pytest.mark.usual(name="psaq+minmax")
@pytest.mark.usual(small=["mask", "vit"])
@pytest.mark.fast(small=["mask", "vit"])
@pytest.mark.parametrize("name", ["psaq+minmax", pytest.param("clamp", marks=pytest.mark.slow)])
def test_methods_run(small, name):
    model = small[1]
    quantized = quantize(name, model, "full")
    x = images(2)
    with torch.no_grad():
        distance = float(model.output_distance(quantized(x), model.net(x)))
    assert 0.0 < distance < 1.0
    assert {layer.bits for layer in quantized.summary.layers} == {8}


# One for each way in which a layer is computed again; `tests/methods/test_transposed.py` has all methods.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["psaq2", "noise+repq", "noise+qdrop"])
def test_the_whole_detector_can_be_quantized(name):
    """The transposed convolution of its mask head too."""
    model = wrapped("mmdet", MODELS["mask"][1]())
    quantized = quantize(name, model, "matmul")
    x = images(2)
    with torch.no_grad():
        distance = float(model.output_distance(quantized(x), model.net(x)))
    assert 0.0 < distance < 1.0
    (up,) = [site for site in quantized.sites.weights if site.axis == 1]
    assert {layer.name: layer.bits for layer in quantized.summary.layers}[up.parameter] == 8
    grid = quantized.weights[up.parameter]
    while not isinstance(grid, Uniform):
        grid = grid.base
    assert grid.axis == 1
    assert not torch.equal(quantized.net.get_parameter(up.parameter), model.net.get_parameter(up.parameter))


@pytest.mark.fast(scheme="full")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["cascade", "vit"])
def test_the_backbone_alone_can_be_quantized(name, scheme):
    library, config = MODELS[name]
    model = wrapped(library, config()).restricted("backbone")
    quantized = quantize("noise+minmax", model, scheme)
    changed = {n for n, p in quantized.net.named_parameters() if not torch.equal(p, model.net.get_parameter(n))}
    assert changed == {layer.name for layer in quantized.summary.layers}
    assert all(layer.startswith(model.part) for layer in changed)
    assert all(label.startswith(model.part) for label in quantized.summary.activation_ranges)
    whole = wrapped(library, config()).net
    assert same(whole(images()), model.net(images()))


# --- segmentation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_logits_are_mmsegs_before_scaling(name):
    config = MODELS[name][1]
    x, model = images(), build(config(), "mmseg")
    with torch.no_grad():
        expected = model.encode_decode(x, [{"img_shape": (SIZE, SIZE)}] * 2)
        net = SegmentationNet(model)
        logits = net(x)
    scaled = functional.interpolate(logits, expected.shape[2:], mode="bilinear", align_corners=model.align_corners)
    torch.testing.assert_close(scaled, expected)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


# --- detection --------------------------------------------------------------------------------------------------


def asked(size: tuple[int, int], count: int = 2) -> list[Any]:
    from tasks.models.openmmlab.samples import detection_sample

    return [detection_sample(size) for _ in range(count)]


def instances(found: list[Any]) -> list[dict[str, Tensor]]:
    return [dict(sample.pred_instances.items()) for sample in found]


def threshold(net: DetectionNet, score: float, box: float = 0.0) -> None:
    net.detector.net.roi_head.test_cfg.score_thr = score
    net.detector.net.rpn_head.test_cfg.min_bbox_size = box


@pytest.mark.fast(name="mask")
@pytest.mark.parametrize("name", ["mask", "cascade"])
def test_detections_are_mmdets_also_when_intercepted(name):
    config = MODELS[name][1]
    reference, net = build(config(), "mmdet"), wrapped("mmdet", config()).net
    for size in ((SIZE, SIZE), (80, 48)):
        x = images(2, size)
        with torch.no_grad():
            expected = instances(reference.predict(x, asked(size)))
            plain = instances(net(x, samples=asked(size)))
            with Interceptor(net, {}):
                intercepted = instances(net(x, samples=asked(size)))
        assert sum(len(found["scores"]) for found in expected) > 0
        assert same(plain, expected)
        assert same(intercepted, expected)
    assert same(net(images()), net(images()))  # and no more


@pytest.mark.fast(name="mask", scheme="full")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["mask", "cascade"])
def test_a_quantized_model_detects_any_number_of_objects(name, scheme):
    model = wrapped("mmdet", MODELS[name][1]())
    quantized = quantize("noise+minmax", model, scheme)
    for size in ((SIZE, SIZE), (80, 48)):
        found = []
        for score, box in ((0.0, 0.0), (2.0, 0.0), (0.0, 1e6)):  # many; none; not even a proposal
            threshold(quantized.net, score, box)
            with torch.no_grad():
                detected = instances(quantized(images(2, size), samples=asked(size)))
            found.append([len(each["scores"]) for each in detected])
        assert min(found[0]) > 0
        assert found[1:] == [[0, 0], [0, 0]]


def test_boxes_are_seen_by_their_own_image():
    net = wrapped("mmdet", MODELS["mask"][1]()).net
    x = images(2)
    both, one = net(x), net(x[:1])
    torch.testing.assert_close(both.class_logits[:1], one.class_logits)
    torch.testing.assert_close(both.mask_logits[0][:1], one.mask_logits[0])
    assert both.class_logits.shape == (2, 4, 11)
    assert both.box_deltas.shape == (2, 4, 4)
    swapped = net(x.flip(0))
    assert not torch.allclose(swapped.class_logits.flip(0), both.class_logits)  # other boxes


def test_stages_of_a_cascade_follow_each_other():
    net = wrapped("mmdet", MODELS["cascade"][1]()).net
    found = net(images(2))
    assert found.class_logits.shape == (2, 8, 11)
    assert len(found.mask_logits) == 2
    with Interceptor(net, {}, record=(record := {})):
        net(images(2))
    second = [v for k, v in record.items() if k.module.endswith("bbox_head.1.fc_cls")]
    assert torch.equal(found.class_logits[:, 4:].flatten(0, 1), second[0])


# --- packaged models --------------------------------------------------------------------------------------------

# Weights, activations in `matmul` and in `full`: of the whole model, and of its backbone alone.
COUNTS = {
    # In `full` the ReLU that a box head uses twice has a range for each call.
    "Mask R-CNN Swin-T": ((73, 121, 187), (52, 100, 157)),
    "Cascade Mask R-CNN Swin-S": ((141, 237, 355), (100, 196, 301)),
    "UperNet Swin-T": ((65, 113, 179), (52, 100, 157)),
    "UperNet DeiT-S": ((62, 110, 147), (49, 97, 125)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_models(name):
    library, config = PACKAGED[name]
    model = wrapped(library, config())
    check_interception(model.net, images())
    counts = []
    for part in (None, "backbone"):
        graph = trace(model.restricted(part))
        matmul, full = (find_sites(graph, scheme, BitSpec(8, 8)) for scheme in ("matmul", "full"))
        assert len(matmul.weights) == len(full.weights)
        counts.append((len(matmul.weights), len(matmul.activations), len(full.activations)))
    assert tuple(counts) == COUNTS[name]
    depth = {"Cascade Mask R-CNN Swin-S": 24}.get(name, 12)
    assert len(find_blocks(graph)) == len(find_attention(graph)) == depth


def test_a_segmentor_with_one_channel_for_two_classes_is_refused():
    config = zoo("upernet_vit")
    config.decode_head.update(num_classes=2, out_channels=1, threshold=0.3)
    with pytest.raises(UsageError, match=r"1 output channel\(s\) for 2 classes"):
        SegmentationSuite.count_classes(None, build(config, "mmseg"), "binary")
