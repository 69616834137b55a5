"""Scheme `full` on all kinds of arithmetic: what layers and matrix products receive has at most 2^bits values."""

from __future__ import annotations

import copy

import pytest
import torch
from arithmetic_networks import SHAPE, Between, Maps, Received, quantized
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import CLASSES, NETWORKS, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace_net
from tasks.models.attention import unfused

BITS = 3


def labels(net: nn.Module) -> list[str]:
    return [str(site) for site in find_sites(trace_net(net, SHAPE), "full", BitSpec(BITS, BITS)).activations]


def received(net: nn.Module) -> list[tuple[str, int]]:
    model = quantized(net, BitSpec(BITS, BITS))
    with torch.no_grad(), Received() as seen:
        model(images())
    return seen.counts


class HandwrittenRms(nn.Module):
    """As timm's without torch's own: a statistic in three steps, and a scale for each channel."""

    def __init__(self, width: int, **_) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        mean = torch.mean(x.pow(2), dim=-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6) * self.weight


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, **options
    )
    return unfused(net.eval().requires_grad_(False))


def _assigned(x):
    made = x.new_zeros(x.shape)
    made[:, ::2] = x[:, ::2]
    made[:, 1::2] = x[:, 1::2] * 0.3
    return made


def _view(x):
    y = x * 1
    y[:, 1:].add_(x[:, :-1])
    return y


TRANSFORMERS = {
    **NETWORKS,
    "rms": lambda: vit(norm_layer=nn.RMSNorm),
    "handwritten rms": lambda: vit(norm_layer=HandwrittenRms),
    "layer scale": lambda: vit(init_values=0.5),
    "quickgelu": lambda: vit(act_layer=QuickGelu),
    "q and k normalised": lambda: vit(qk_norm=True, norm_layer=nn.LayerNorm),
}
ON_TOKENS = {
    "l2 by hand": lambda x: x / x.norm(dim=-1, keepdim=True),
    "F.normalize": lambda x: functional.normalize(x, dim=-1),
    "layer norm by hand": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "standardised": lambda x: (x - x.mean()) / x.std(),
    "swiglu": lambda x: functional.silu(x.chunk(2, -1)[0].repeat(1, 1, 2)) * x,
    "gelu by hand": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu tanh by hand": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x.pow(3)))),
    "clamp": lambda x: x.clamp(-0.4, 0.7),
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked": lambda x: x.masked_fill(x > 0.5, 9.0),
    "negated half": lambda x: torch.cat([x[..., :8], -x[..., 8:]], -1),
    "stacked with its negative": lambda x: torch.stack([x[..., :8], -x[..., 8:]], -1).flatten(2),
    "difference": lambda x: x.roll(1, 1) - x,
    "quotient": lambda x: x.roll(1, 1) / (x + 9),
    "assigned": _assigned,
    "in place on a view": _view,
    "softmax by hand": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
}
ON_MAPS = {
    "group norm": nn.GroupNorm(2, 6),
    "instance norm": nn.InstanceNorm2d(6),
    "local response norm": nn.LocalResponseNorm(3),
    "batch norm, functional": lambda x: functional.batch_norm(x, torch.full((6,), 0.2), torch.full((6,), 2.0)),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: functional.interpolate(x, size=(9, 9), mode="bicubic"),
    "area": lambda x: functional.interpolate(x, size=(8, 8), mode="area"),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "average": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveAvgPool2d(4),
    "maximum": nn.MaxPool2d(2),
    "blur": lambda x: functional.lp_pool2d(x.abs(), 2.0, 2),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid().roll(1, 1),
    "grid sample": lambda x: functional.grid_sample(x, torch.rand(len(x), 8, 8, 2) * 2 - 1, align_corners=False),
    "padded with ones": lambda x: functional.pad(x, (1, 1, 1, 1)),
    **{
        name: layer()
        for name, layer in {
            "hardswish": nn.Hardswish,
            "leaky": nn.LeakyReLU,
            "elu": nn.ELU,
            "mish": nn.Mish,
            "relu6": nn.ReLU6,
            "prelu": nn.PReLU,
            "softplus": nn.Softplus,
            "tanh": nn.Tanh,
            "hardsigmoid": nn.Hardsigmoid,
        }.items()
    },
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_k1_products_of_transformers_receive_few_values(name):
    """FAULTS K1 "test_vit4 ... inputs of qkv/fc1 hold 500-1,000 values, not 16"."""
    net = tiny_model(name).net if name in NETWORKS else TRANSFORMERS[name]()
    counts = received(net)
    assert len(counts) > 15
    assert max(n for _, n in counts) <= 2**BITS
    assert len(find_blocks(trace_net(net, SHAPE))) >= 2


@pytest.mark.parametrize("name", [*ON_TOKENS, *ON_MAPS])
def test_k1_products_receive_few_values(name):
    """FAULTS K1 on normalisations, resizes, gates, pools, views: whatever lies between two layers."""
    counts = received(Between(ON_TOKENS[name]) if name in ON_TOKENS else Maps(ON_MAPS[name]))
    assert [(op, n <= 2**BITS) for op, n in counts] == [(op, True) for op, _ in counts]
    assert len(counts) == 2


@pytest.mark.parametrize("name", ["clamp", "gelu by hand", "gelu tanh by hand"])
def test_an_activation_function_that_is_written_out_is_one(name):
    """What feeds it is not stored, nor are its steps."""
    found = [label for label in labels(Between(ON_TOKENS[name])) if label.endswith(":out")]
    assert len(found) == 2
    assert found[-1] == "last/linear.0:out"


@pytest.mark.parametrize("name", ["l2 by hand", "layer norm by hand"])
def test_a_normalisation_that_is_written_out_is_one(name):
    """Its input and its result are stored; its statistics stay in float, as those of LayerNorm."""
    found = [label for label in labels(Between(ON_TOKENS[name])) if label.endswith(":out")]
    assert found == ["first/linear.0:out", "model/div.0:out", "last/linear.0:out"]


def test_k1_quickgelu_has_blocks():
    """FAULTS K1 "quickgelu ... no transformer block"."""
    net = vit(act_layer=QuickGelu)
    assert [block.path for block in find_blocks(trace_net(net, SHAPE))] == ["blocks.0", "blocks.1"]
    found = labels(net)
    assert "blocks.0.mlp.act/mul.0:out" in found
    assert not [label for label in found if "fc1/" in label or "mlp.act/activation" in label]


# --- in place -------------------------------------------------------------------------------------------------------


def _statement(net, x):
    x = x * 1
    x.add_(net.inner(x))
    return x


def _onto_places(net, x):
    y = net.place.expand(len(x), -1, -1).clone()
    y.add_(x)
    return y


def _relu_statement(net, x):
    x.mul_(2)
    functional.relu(x, inplace=True)
    return x


def _product_statement(net, x):
    x = x + 0
    x *= net.inner(x)
    return x


IN_PLACE = {
    "sum": (_statement, lambda net, x: x + net.inner(x)),
    "onto a buffer": (_onto_places, lambda net, x: net.place + x),
    "relu": (_relu_statement, lambda net, x: functional.relu(x * 2)),
    "product": (_product_statement, lambda net, x: x * net.inner(x)),
    "iadd": (lambda net, x: x.__iadd__(net.inner(x * 1)), lambda net, x: x + net.inner(x)),
}


@pytest.mark.parametrize("form", IN_PLACE)
def test_k1_statements_in_place_give_the_same_numbers(form):
    """FAULTS K1 "x.add_(branch(x)) as a statement": its quantizer did nothing, or the branch vanished."""
    nets = [Between(between, own=True) for between in IN_PLACE[form]]
    plain = [net(images()) for net in nets]
    assert torch.equal(*plain)
    models = [quantized(net, BitSpec(BITS, BITS)) for net in nets]
    ranges = [model.summary.activation_ranges for model in models]
    assert list(ranges[0].values()) == list(ranges[1].values())
    assert torch.equal(models[0](images()), models[1](images()))
    with torch.no_grad(), Received() as seen:
        models[0](images())
    assert max(n for _, n in seen.counts) <= 2**BITS


def test_what_a_tap_keeps_does_not_change_with_what_is_written_later():
    net = Between(_statement, own=True)
    points = [(OpKey("", "add", 0), slot) for slot in (0, 1, OUTPUT)]
    _, found = tap(net, images(), points)
    first, second, result = (found[point] for point in points)
    assert torch.equal(first + second, result)
    assert not torch.equal(first, result)


def test_replayed_statements_are_written():
    net = Between(_statement, own=True)
    record = {}
    with Interceptor(net, {}, record=record):
        plain = net(images())
    replay = {key: value.clone() for key, value in record.items() if key.module != "last"}
    with Interceptor(net, {}, replay=replay):
        assert torch.equal(net(images(seed=9)), plain)


# --- masks and positions --------------------------------------------------------------------------------------------


def test_k1_a_position_embedding_in_a_buffer_is_no_mask():
    """FAULTS K1 "a fixed position embedding kept in a buffer": its sum was not a site."""
    found = labels(Between(lambda net, x: x + net.place, own=True))
    assert {"model/add.0:in1", "model/add.0:out"} <= set(found)


def test_a_mask_is_a_constant_that_goes_into_a_softmax():
    found = labels(Between(lambda net, x: (x + net.place + net.place).softmax(-1), own=True))
    assert not [label for label in found if "/add" in label]


def test_k1_each_call_of_a_relu_has_its_range():
    """FAULTS K1 "one module called twice (both ReLUs of a residual block) | one range for two tensors"."""
    relu = nn.ReLU()
    net = Between(lambda net, x: net.inner(net.relu(net.inner(net.relu(x)) * 40)), own=True)
    net.relu = relu
    ranges = quantized(net, BitSpec(8, 8)).summary.activation_ranges
    first, second = ranges["relu/activation.0:out"], ranges["relu/activation.1:out"]
    assert second[1] > 5 * first[1]


def test_a_copy_is_traced_as_its_original():
    """The pass leaves nothing behind on the network."""
    net = tiny_model("vit").net
    assert trace_net(copy.deepcopy(net), SHAPE).ops == trace_net(net, SHAPE).ops
