"""Sites, blocks and interception on real timm classes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from arithmetic_networks import quantized as quantized_net
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import NETWORKS, SHAPE, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.core import audit
from methods.core.graph.intercept import (
    FusedAttentionError,
    Interceptor,
    OpaqueOperationError,
    OpKey,
    UnsupportedNetworkError,
    tap,
)
from methods.core.graph.sites import NoSitesError, find_sites
from methods.core.graph.structure import NotATransformerError, find_blocks, patch_grid, to_grid
from methods.core.graph.trace import trace, trace_net
from methods.core.quantized import UnboundedRangeError

SPEC = BitSpec(4, 6)


def labels(name: str, scheme: str) -> list[str]:
    sites = find_sites(trace(tiny_model(name)), scheme, SPEC)
    return [str(site) for site in sites.activations]


def test_full_scheme_of_a_vit_is_psaqs_site_list():
    block = "blocks.0"
    assert labels("vit", "full")[:15] == [
        "patch_embed.proj/conv.0:in0",  # the image
        "patch_embed.proj/conv.0:out",
        "model/cat.0:out",  # class token joined
        "model/add.0:in1",  # position embedding
        "model/add.0:out",
        f"{block}.norm1/layer_norm.0:out",
        f"{block}.attn.qkv/linear.0:out",
        f"{block}.attn/matmul.0:out",  # q.k logits
        f"{block}.attn/matmul.1:out",  # attn.v
        f"{block}.attn.proj/linear.0:out",
        f"{block}/add.0:out",  # residual stream
        f"{block}.norm2/layer_norm.0:out",
        f"{block}.mlp.act/activation.0:out",  # GELU output; its input is not stored
        f"{block}.mlp.fc2/linear.0:out",
        f"{block}/add.1:out",
    ]
    assert labels("vit", "full")[-2:] == ["norm/layer_norm.0:out", "head/linear.0:out"]


def test_full_scheme_of_a_swin_has_the_bias_table_but_not_the_masked_logits():
    found = labels("swin", "full")
    shifted = "layers.0.blocks.1.attn"
    assert f"{shifted}/add.0:in1" in found  # relative position bias
    assert f"{shifted}/add.0:out" in found
    assert f"{shifted}/add.1:out" not in found  # logits + mask of -100
    assert "layers.1.downsample.reduction/linear.0:out" in found
    assert "head.global_pool.pool/pool.0:out" in found
    assert not [label for label in found if "softmax" in label]


@pytest.mark.parametrize("name", NETWORKS)
def test_matmul_scheme_quantizes_operands_only(name):
    graph = trace(tiny_model(name))
    sites = find_sites(graph, "matmul", SPEC)
    expected = {
        (op.key, slot)
        for op in graph.ops
        for slot in {"conv": (0,), "linear": (0,), "matmul": (0, 1)}.get(op.key.kind, ())
    }
    assert {site.point for site in sites.activations} == expected
    assert {s.bits for s in sites.activations if s.op.kind == "conv"} == {8}
    assert {s.bits for s in sites.activations if s.op.kind != "conv"} == {6}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_matrix_is_a_site(name):
    net = tiny_model(name).net
    wanted = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for scheme in ("full", "matmul"):
        assert {site.parameter for site in find_sites(trace_net(net, SHAPE), scheme, SPEC).weights} == wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_interception_without_transforms_is_bit_identical(name):
    net = tiny_model(name).net
    plain = net(images())
    with Interceptor(net, {}):
        assert torch.equal(net(images()), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_go_even_when_the_network_raises(name):
    net = tiny_model(name).net
    with pytest.raises(RuntimeError), Interceptor(net, {}):
        net(torch.zeros(1, 7, 16, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_replayed_operations_are_not_computed():
    net = tiny_model("vit").net
    record: dict[OpKey, torch.Tensor] = {}
    with Interceptor(net, {}, record=record):
        plain = net(images())
    head = OpKey("head", "linear", 0)
    with Interceptor(net, {}, replay={k: v for k, v in record.items() if k != head}):
        # Other images, but everything up to the head is replayed.
        assert torch.equal(net(images(seed=9)), plain)


def test_fused_attention_is_refused():
    net = VisionTransformer(img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2).eval()
    net.blocks[0].attn.fused_attn = True
    with pytest.raises(FusedAttentionError, match="fused_attn"):
        trace_net(net, SHAPE)


def test_operations_outside_the_network_are_not_keyed():
    """A loss computed on the network's outputs must not meet its quantizers."""
    net = tiny_model("vit").net
    calls = []
    with Interceptor(net, {(OpKey("", "pool", 0), -1): lambda x: calls.append(x) or x}):
        net(images()).mean(1)
    assert calls == []


class _Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x.squeeze(1))
        return self.attention(x, x, x, need_weights=True)[0]


def test_arithmetic_that_cannot_be_quantized_is_refused():
    with pytest.raises(OpaqueOperationError, match="multi_head_attention_forward"):
        trace_net(_Opaque().train(), SHAPE)


class _Standardized(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_a_layer_whose_weight_is_computed_is_refused():
    """Hybrid ViTs have such a stem, which would stay in float without a word."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), _Standardized(4, 4, 3)).eval()
    with pytest.raises(OpaqueOperationError, match="weight of 2"):
        find_sites(trace_net(net, SHAPE), "full", BitSpec(4, 8))


class _Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = functional.linear(input=x.squeeze(1), weight=self.first.weight, bias=self.first.bias)
        x = functional.linear(x, weight=self.second.weight)
        return torch.matmul(x, other=x.mT)


def test_operands_given_by_name_are_seen():
    net, x = _Named().eval().requires_grad_(False), images()
    graph = trace_net(net, SHAPE)
    assert [str(op.key) for op in graph.ops] == ["model/linear.0", "model/linear.1", "model/matmul.0"]
    sites = find_sites(graph, "matmul", SPEC)
    assert [site.parameter for site in sites.weights] == ["first.weight", "second.weight"]
    with Interceptor(net, {(OpKey("", "linear", 1), 0): torch.zeros_like}):
        assert float(net(x).abs().max()) == 0.0


def test_a_network_without_sites_or_blocks_is_refused():
    with pytest.raises(NoSitesError):
        find_sites(trace_net(nn.Sequential(nn.LayerNorm(16), _Parameter()), SHAPE), "full", SPEC)
    with pytest.raises(NotATransformerError):
        find_blocks(trace_net(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU()), SHAPE))


@pytest.mark.parametrize("error", [FusedAttentionError, NoSitesError, OpaqueOperationError])
def test_refusals_of_a_network_have_one_base(error):
    assert issubclass(error, UnsupportedNetworkError)


class _Parameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x


def test_names_do_not_matter():
    class Renamed(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.norm_q_head = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm_q_head(x)

    net = tiny_model("vit").net
    plain, wrapped = trace_net(net, SHAPE), trace_net(Renamed(net), SHAPE)
    for scheme in ("full", "matmul"):
        counts = [len(find_sites(t, scheme, SPEC).activations) for t in (plain, wrapped)]
        # "model" is the root's label; wrapped, the same operations run in the child.
        assert counts[0] == counts[1]
    assert len(find_blocks(plain)) == len(find_blocks(wrapped)) == 2


@pytest.mark.parametrize(("name", "paths"), [("vit", 2), ("swin", 4)])
def test_taps_are_the_attention_results_in_image_order(name, paths):
    """The branch tap equals the attention module's output, put back into the image by the block's own code."""
    model = tiny_model(name)
    graph = trace(model)
    blocks = find_blocks(graph)
    assert len(blocks) == paths
    x = images(2)
    _, found = tap(model.net, x, [b.branch for b in blocks])
    first = model.net.get_submodule(blocks[0].path)
    seen = {}
    handle = first.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    model.net(x)
    handle.remove()
    attention = first.attn(first.norm1(seen["x"])) if name == "vit" else first._attn(first.norm1(seen["x"]))
    assert torch.allclose(found[blocks[0].branch], attention, atol=1e-6)


def test_grid_drops_prefix_tokens_and_follows_patch_merging():
    tokens = torch.arange(2 * 17 * 3.0).reshape(2, 17, 3)
    grid = to_grid(tokens, (4, 4))
    assert grid.shape == (2, 4, 4, 3)
    assert torch.equal(grid.reshape(2, 16, 3), tokens[:, 1:])
    assert to_grid(torch.zeros(2, 4, 3), (4, 4)).shape == (2, 2, 2, 3)
    assert patch_grid(trace(tiny_model("vit"))) == (4, 4)
    with pytest.raises(ValueError, match="do not fit"):
        to_grid(torch.zeros(2, 40, 3), (4, 4))


def test_a_models_network_is_traced_once_a_part():
    model = dataclasses.replace(tiny_model("vit"), parts={"backbone": "blocks"})
    whole = trace(model)
    assert trace(dataclasses.replace(model, name="the same network")) is whole
    part = trace(model.restricted("backbone"))
    assert (whole.part, part.part) == (None, "blocks")
    assert trace(model.restricted("backbone").restricted(None)) is whole
    assert trace(dataclasses.replace(model, net=copy.deepcopy(model.net))) is not whole


def test_what_results_are_held_against_is_no_trace_that_methods_have():
    """A method that takes operations out of its trace would otherwise hide them from the checks."""
    model = tiny_model("vit")
    assert audit.traced(model) is not trace(model)


class Masked(nn.Module):
    """Attention of tokens (n, 16, 16) with a position bias and a mask, added as `add` says."""

    def __init__(self, add, mask=-100.0):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(16, width) for width in (16, 16, 16, 5))
        self.bias = nn.Parameter(torch.randn(16, 16))
        self.register_buffer("mask", torch.zeros(16, 16).index_fill_(1, torch.arange(8, 16), mask))
        self.add = add
        self.requires_grad_(False).eval()

    def forward(self, x):
        x = x.squeeze(1)
        logits = self.add(self.q(x) @ self.k(x).transpose(-2, -1), self.bias, self.mask)
        return self.out((logits.softmax(-1) @ self.v(x)).mean(1))


MASKINGS = {
    "one after the other": lambda a, bias, mask: a + bias + mask,
    "their sum": lambda a, bias, mask: a + (bias + mask),
    "sum of several": lambda a, bias, mask: (mask + (bias + mask)) + a,
}


@pytest.mark.parametrize("mask", [-100.0, float("-inf")])
@pytest.mark.parametrize("form", MASKINGS)
def test_a_mask_stretches_no_range_however_it_is_added(form, mask):
    net = Masked(MASKINGS[form], mask)
    quantized = quantized_net(net, BitSpec(8, 8))
    lows = [float(quantizer.low) for quantizer in quantized.activations.values()]
    assert min(lows) > -20
    biases = [str(s) for s in quantized.sites.activations if s.op.kind == "add" and s.slot != -1]
    assert len(biases) == 1  # the position bias is stored, as in every form
    x = images(8, 9)
    with torch.no_grad():
        assert torch.allclose(quantized(x), net(x), atol=0.05)


def test_a_range_that_is_not_finite_is_refused_with_its_place():
    """-inf anywhere but before a softmax."""
    net = Masked(lambda a, bias, mask: (a + bias + mask).clamp(max=50.0))
    net.mask[0, 0] = float("-inf")
    with pytest.raises(UnboundedRangeError, match=r"the values at model/.* reach from -inf to .* mask of -inf"):
        quantized_net(net, BitSpec(8, 8))
