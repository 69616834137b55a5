"""What dense models have beside transformer blocks: transposed convolutions, BatchNorm, boxes, a part left in float."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import CLASSES, SHAPE, FakeContext, images, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import SCHEMES, BitSpec
from methods.calibrators.minmax.info import INFO as MINMAX
from methods.core.graph.intercept import OUTPUT, Interceptor, OpaqueOperationError, OpKey
from methods.core.graph.sites import NoSitesError, find_sites
from methods.core.graph.structure import to_grid
from methods.core.graph.trace import trace_net
from methods.core.range_calibrator import RangeCalibrator
from methods.core.segment_runner import _side_by_side

SPEC = BitSpec(4, 6)


class Head(nn.Module):
    """Features of two boxes per image from two maps, put together by assignment, then a mask head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.levels = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in range(2))
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        fine, coarse = (level(m) for level, m in zip(self.levels, (x, functional.max_pool2d(x, 2)), strict=True))
        boxes = fine.new_zeros(2 * len(x), 4, 4, 4)
        boxes[0::2] = fine[..., 2:6, 2:6]
        boxes[1::2] = coarse[..., :4, :4]
        boxes += 0 * fine.sum()  # as mmdet's RoI extractor does for levels without boxes
        return self.out(functional.relu(self.up(boxes)))


def head() -> Head:
    torch.manual_seed(0)
    net = Head().eval().requires_grad_(False)
    net.norm.running_var.uniform_(0.5, 2.0)
    net.norm.running_mean.normal_()
    return net


def model(net: nn.Module) -> VisionModel:
    def unused(*_: object) -> None:
        raise NotImplementedError

    return VisionModel("tiny", "x", net, SHAPE, (0.5,), (0.5,), CLASSES, unused, unused, unused)


def minmax(net: nn.Module, scheme: str, spec: BitSpec = SPEC, *, part: str | None = None):
    calibrator = MINMAX.load()(MINMAX.options())
    assert isinstance(calibrator, RangeCalibrator)
    return calibrator.calibrate(replace(model(net), part=part), images(), spec=spec, scheme=scheme, ctx=FakeContext())


def labels(net: nn.Module, scheme: str) -> list[str]:
    return [str(site) for site in find_sites(trace_net(net, SHAPE), scheme, SPEC).activations]


def test_interception_is_bit_identical():
    net = head()
    with Interceptor(net, {}):
        found = net(images())
    assert torch.equal(found, net(images()))


def test_sites_of_convolutions_and_boxes():
    assert labels(head(), "matmul") == [
        "stem/conv.0:in0",
        "levels.0/conv.0:in0",
        "levels.1/conv.0:in0",
        "up/conv_transpose.0:in0",
        "out/conv.0:in0",
    ]
    assert labels(head(), "full") == [
        "stem/conv.0:in0",  # the image
        "model/activation.0:out",  # convolution, BatchNorm and ReLU are one
        "levels.0/conv.0:out",
        "levels.1/conv.0:out",
        "up/conv_transpose.0:in0",  # drawn from two stored maps
        "model/activation.1:out",
        "out/conv.0:out",
    ]


def test_batch_norm_without_activation_is_stored():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)).eval()
    assert labels(net, "full") == ["0/conv.0:in0", "1/batch_norm.0:out", "2/conv.0:out"]


def test_what_boxes_are_drawn_from_is_known():
    graph = trace_net(head(), SHAPE)
    (up,) = graph.of_kind("conv_transpose")
    assert up.operands[0].ops == {OpKey("levels.0", "conv", 0), OpKey("levels.1", "conv", 0)}
    assert up.batched
    assert up.macs == 2 * 4 * 4 * 4 * 3 * 2 * 2  # boxes, values of each, output channels, kernel
    assert not graph.of_kind("add")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_transposed_convolution_has_a_scale_for_each_output_channel(scheme):
    net = head()
    with torch.no_grad():
        net.up.weight[:, 1] *= 100.0
    quantized = minmax(net, scheme)
    (site,) = [site for site in quantized.sites.weights if site.parameter == "up.weight"]
    assert site.axis == 1
    assert quantized.weights["up.weight"].scale.shape == (3,)
    rounded = quantized.net.up.weight
    for channel in rounded.movedim(1, 0).flatten(1):
        assert 4 < len(channel.unique()) <= 16
    assert torch.isfinite(quantized(images())).all()
    assert not torch.equal(quantized(images()), net(images()))
    fine = minmax(net, scheme, BitSpec(8, 8))(images())
    torch.testing.assert_close(fine, net(images()), atol=0.05 * float(net(images()).abs().max()), rtol=0.0)


def test_candidates_of_a_transposed_convolution():
    """CLAMP-ViT's search applies several weights at once."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
    x, weights = torch.randn(6, 4, 3, 3), torch.randn(3, *layer.weight.shape)
    got = _side_by_side("conv_transpose", weights, False)(x, layer.weight, layer.bias, stride=2, groups=2)
    parts = [
        functional.conv_transpose2d(part, weight, layer.bias, stride=2, groups=2)
        for part, weight in zip(x.chunk(3), weights, strict=True)
    ]
    assert torch.equal(got, torch.cat(parts))


def test_other_transposed_convolutions_are_refused():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(16, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x.squeeze(1))

    with pytest.raises(OpaqueOperationError, match="conv_transpose1d"):
        trace_net(Sequence(), SHAPE)


def test_no_boxes_at_all():
    """Quantizers of operations that see no rows."""

    class Few(Head):
        def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
            x = functional.relu(self.norm(self.stem(x)))
            return self.out(functional.relu(self.up(self.levels[0](x)[:rows])))

    torch.manual_seed(0)
    quantized = minmax(Few().eval().requires_grad_(False), "full")
    with quantized.interceptor():
        assert quantized.net(images(), 0).shape == (0, 2, 32, 32)


class Whole(nn.Module):
    """A transformer and layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_model("vit").net
        self.neck = nn.Linear(CLASSES, 8)
        self.head = nn.Linear(8, CLASSES)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.neck(self.body(x))))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_part_alone_is_quantized(scheme):
    graphs = [trace_net(Whole().eval(), SHAPE, part) for part in (None, "body")]
    whole, part = (find_sites(graph, scheme, SPEC) for graph in graphs)
    assert {s.parameter for s in whole.weights} - {s.parameter for s in part.weights} == {"neck.weight", "head.weight"}
    assert {s.point for s in part.activations} < {s.point for s in whole.activations}
    assert all(site.op.module.startswith("body") for site in part.activations)
    assert {name for site in part.activations for name in site.layers} <= {s.parameter for s in part.weights}
    assert len(part.with_widths({s.parameter: 4 for s in part.weights}, lambda b: b).weights) == len(part.weights)
    # What stays in float still counts, at 32 bits per factor.
    assert part.bit_operations > whole.bit_operations
    layer = OpKey("body.head", "linear", 0)
    assert ((layer, OUTPUT) in {s.point for s in part.activations}) == (scheme == "full")


def test_only_the_part_changes():
    net = Whole().eval()
    quantized = minmax(net, "full", part="body")
    assert torch.equal(quantized.net.head.weight, net.head.weight)
    assert not torch.equal(quantized.net.body.head.weight, net.body.head.weight)
    x = images()
    with torch.no_grad(), quantized.interceptor():
        body = quantized.net.body(x)
    assert len(quantized.summary.layers) == len(quantized.sites.weights)
    torch.testing.assert_close(quantized(x), net.head(functional.relu(net.neck(body))))


def test_a_part_without_layers_is_refused():
    with pytest.raises(NoSitesError):
        find_sites(trace_net(Whole().eval(), SHAPE, "elsewhere"), "full", SPEC)


def test_grids_of_odd_sides_are_padded_when_patches_are_merged():
    assert to_grid(torch.zeros(2, 13 * 9, 3), (25, 18)).shape == (2, 13, 9, 3)
    assert to_grid(torch.zeros(2, 7 * 5, 3), (25, 18)).shape == (2, 7, 5, 3)
