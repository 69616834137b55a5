"""Elementwise products and quotients of two activations: gated MLPs, linear attention, squeeze and excite."""

from __future__ import annotations

import pytest
import timm
import torch
from arithmetic_networks import SHAPE, Between, audited, quantized
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.core.graph.intercept import Interceptor, OpKey
from methods.core.graph.sites import Sites, find_sites
from methods.core.graph.trace import Trace, trace_net
from tasks.models.attention import unfused
from tasks.suites.embedded import architectures as embedded

SPEC = BitSpec(3, 3)
MBCONV = 3  # results of both activation functions and of the last normalisation


def eva02(depth: int = 2) -> nn.Module:
    return timm.create_model(
        "eva02_tiny_patch14_224", img_size=32, patch_size=4, embed_dim=24, depth=depth, num_heads=3, num_classes=5
    )


NETWORKS = {
    # Image and stem; a depthwise block with its sum; four MBConvs, one with a sum. Each block of attention: qkv, two
    # aggregations, both ReLUs, v with its ones, k v, q k v, quotient, projection, sum; an MBConv, its sum.
    "efficientvit": (lambda: embedded.build("efficientvit"), 1, 2 + 3 + 4 * MBCONV + 1 + 2 * (11 + MBCONV + 1) + 6),
    # Image, patches, class token, position and sum; each block: norm, qkv, q and k rotated, both put together again,
    # logits, values, projection, sum; norm, fc1, gate, product, fc2, sum; at the end mean, norm and head.
    "eva02": (eva02, 3, 5 + 2 * (10 + 6) + 3),
}


def ready(name: str) -> tuple[nn.Module, Trace, torch.Tensor]:
    torch.manual_seed(0)
    build, channels, _ = NETWORKS[name]
    net = unfused(build().eval().requires_grad_(False))
    shape = (channels, 32, 32)
    return net, trace_net(net, shape), torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def labels(sites: Sites) -> list[str]:
    return [str(site) for site in sites.activations]


@pytest.mark.parametrize("name", NETWORKS)
def test_sites_of_whole_networks_are_those_counted_by_hand(name):
    net, graph, images = ready(name)
    sites = find_sites(graph, "full", SPEC)
    assert len(sites.activations) == NETWORKS[name][2]
    plain = net(images)
    for transforms in ({}, {site.point: torch.clone for site in sites.activations}):  # quantizers off
        with Interceptor(net, transforms):
            assert torch.equal(net(images), plain)


def test_sites_of_linear_attention():
    """The second product makes both dividend and divisor, which are stored together."""
    _, graph, _ = ready("efficientvit")
    block = "stages.2.blocks.1.context_module.main"
    inside = [s for s in labels(find_sites(graph, "full", SPEC)) if s.startswith(f"{block}/")]
    assert inside == [f"{block}/{s}" for s in ("matmul.0:in1", "matmul.0:out", "matmul.1:out", "div.0:out")]


def test_sites_of_separable_attention():
    """MobileViT-v2, 2 + 4 + 3 blocks of twelve sites; scores come from softmax, which this scheme leaves in float."""
    with torch.device("meta"):
        net = timm.create_model("mobilevitv2_050", num_classes=5).eval().requires_grad_(False)
    sites = find_sites(trace_net(net, (3, 64, 64)), "full", SPEC)
    block = "stages.2.1.transformer.1"
    assert [s.removeprefix(block) for s in labels(sites) if s.startswith(block)] == [
        ".norm1/norm.0:out",
        ".attn.qkv_proj/conv.0:out",
        *(f".attn/{s}:out" for s in ("mul.0", "reduce.0", "activation.0", "mul.1")),
        ".attn.out_proj/conv.0:out",
        "/add.0:out",
        ".norm2/norm.0:out",
        ".mlp.act/activation.0:out",
        ".mlp.fc2/conv.0:out",
        "/add.1:out",
    ]
    # Image and stem; six MBConvs, one with a sum; round each stage of attention two convolutions, a norm and a
    # projection; at the end mean and head.
    assert len(labels(sites)) == 9 * 12 + 2 + 6 * MBCONV + 1 + 3 * 4 + 2
    assert sites.float_products == 9


GATED = {
    "halves": lambda net, x: torch.cat(_gated(*net.inner(x).chunk(2, -1)), -1),
    "halves, split": lambda net, x: torch.cat(_gated(*net.inner(x).split(8, -1)), -1),
    "two layers": lambda net, x: _gated(net.inner(x), x)[0],
    "scaled by channels": lambda net, x: (x * net.gain) * net.inner(x),
    "put together": lambda net, x: torch.cat([x[..., :8], net.inner(x)[..., 8:]], -1) * net.inner(x).tanh(),
    "squeeze and excite": lambda net, x: x * net.inner(x.mean(1, keepdim=True)).sigmoid(),
    "linear attention": lambda net, x: _linear_attention(net.inner(x).relu(), x.relu()),
}


def _gated(a, b):
    return functional.silu(a) * b, b


def _linear_attention(q, v):
    found = q @ (q.mT @ functional.pad(v, (0, 1), value=1.0))
    return found[..., :-1] / (found[..., -1:] + 1e-5)


class Factors(Interceptor):
    """How many values each factor of a product or quotient has when it is computed."""

    def __init__(self, net, keys):
        super().__init__(net, {})
        self.keys, self.counts = keys, []

    def operation(self, key: OpKey, func, args, kwargs):
        if key in self.keys:
            self.counts += [len(torch.unique(x)) for x in args[:2]]
        return super().operation(key, func, args, kwargs)


@pytest.mark.parametrize("form", GATED)
def test_no_factor_of_two_activations_stays_in_float(form):
    """A gate on the other half of a layer's result was taken for a function of one tensor, and was not quantized."""
    net = Between(GATED[form], own=True)
    graph = trace_net(net, SHAPE)
    products = [op for op in graph.ops if op.role in {"mul", "div"}]
    assert len(products) == 1
    sites = find_sites(graph, "full", SPEC)
    assert str(products[0].key) + ":out" in labels(sites)
    assert (find_sites(graph, "matmul", SPEC).float_products, sites.float_products) == (1, 0)
    model = quantized(net, SPEC)
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    watch = Factors(model.net, {products[0].key})
    with watch:  # outside of the quantizers' mode
        model(images)
    assert len(watch.counts) == 2
    assert max(watch.counts) <= 2**SPEC.activation + 1  # zeros that pad
    assert audited(net, model, images, SPEC) == []
    assert model.summary.float_products == 0


def test_bit_operations_of_a_gate_by_hand():
    graph = trace_net(Between(GATED["two layers"], own=True), SHAPE)
    layers = 2 * 16 * 16 * 16 + 16 * 16 * 5
    gate = 16 * 16
    assert find_sites(graph, "full", BitSpec(4, 6)).bit_operations == layers * 4 * 6 + gate * 6 * 6
    assert find_sites(graph, "matmul", BitSpec(4, 6)).bit_operations == layers * 4 * 6 + gate * 32 * 32


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_softmax_transformers_have_no_such_product(name):
    """So their sites, costs and keys are what they were; `test_arithmetic` pins them."""
    with torch.device("meta"):
        net = unfused(embedded.build(name).eval().requires_grad_(False))
    graph = trace_net(net, (1, 32, 32))
    assert not any(product.elementwise for product in find_sites(graph, "full", SPEC).products)
