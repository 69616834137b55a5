"""`nn.MultiheadAttention` with its products in sight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from harness.api.spec import BitSpec
from methods.core.graph.attention import find_attention
from methods.core.graph.intercept import Interceptor, OpaqueOperationError, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace_net
from tasks.models.attention import SelfAttention, unfused

SHAPE, WIDTH = (1, 8, 8), 12


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    found = nn.MultiheadAttention(WIDTH, 3, **options).eval().requires_grad_(False)
    if found.in_proj_bias is not None:
        found.in_proj_bias.normal_()
    return found


class Block(nn.Module):
    """As mmcv's: tokens second in the attention's interface, the residual sum inside."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend = attention(batch_first=batch_first)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.batch_first:
            x = x + self.attend(y, y, y, need_weights=False)[0]
        else:
            x = x + self.attend(*(y.transpose(0, 1) for _ in range(3)))[0].transpose(0, 1)
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 2, 2)
        self.blocks = nn.Sequential(Block(batch_first), Block(batch_first))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.embed(images).flatten(2).transpose(1, 2))


def vit(batch_first: bool) -> Vit:
    torch.manual_seed(0)
    return Vit(batch_first).eval().requires_grad_(False)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_computes_what_torch_computes(batch_first, bias):
    fused = attention(batch_first=batch_first, bias=bias)
    plain = SelfAttention(copy.deepcopy(fused))
    x = torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        for got, expected in zip(plain(x, x, x, **options), fused(x, x, x, **options), strict=True):
            torch.testing.assert_close(got, expected)


def test_gradients_are_torchs():
    fused = attention()
    x = torch.randn(5, 2, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradients = [torch.autograd.grad(f(x, x, x)[0].square().sum(), x)[0] for f in (fused, SelfAttention(fused))]
    torch.testing.assert_close(*gradients)


def test_other_uses_are_refused():
    plain = SelfAttention(attention(batch_first=True))
    x, mask = torch.randn(2, 4, WIDTH), torch.zeros(4, 4, dtype=torch.bool)
    for call in (lambda: plain(x, x + 1, x), lambda: plain(x, x, x + 1), lambda: plain(x, x, x, attn_mask=mask)):
        with pytest.raises(NotImplementedError, match="itself"):
            call()
    for options in ({"kdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(NotImplementedError, match="added tokens"):
            SelfAttention(attention(**options))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_network_is_changed_by_rounding_and_then_no_more(batch_first):
    net = vit(batch_first)
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    fused = net(images)
    parameters = sum(p.numel() for p in net.parameters())
    assert unfused(net) is net
    assert sum(p.numel() for p in net.parameters()) == parameters
    plain = net(images)
    torch.testing.assert_close(plain, fused)
    with Interceptor(net, {}):
        assert torch.equal(net(images), plain)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("batch_first", [False, True])
def test_sites_and_blocks_are_those_of_a_plain_transformer(batch_first):
    with pytest.raises(OpaqueOperationError, match="multi_head_attention_forward"):
        trace_net(vit(batch_first), SHAPE)
    net = unfused(vit(batch_first))
    graph = trace_net(net, SHAPE)
    sites = find_sites(graph, "matmul", BitSpec(4, 6))
    assert [site.parameter for site in sites.weights] == ["embed.weight"] + [
        f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("attend.qkv", "attend.proj", "mlp.0", "mlp.2")
    ]
    assert sum(site.op.kind == "matmul" for site in sites.activations) == 2 * 2 * 2
    assert not graph.of_kind("pool")
    blocks = find_blocks(graph)
    assert [block.path for block in blocks] == ["blocks.0", "blocks.1"]
    for found in find_attention(graph):
        assert (found.heads, found.windows, found.prefix, found.grid) == (3, 1, 0, (4, 4))
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    _, found = tap(net, images, [blocks[0].branch, blocks[0].context])
    tokens = net.blocks[0].norm1(net.embed(images).flatten(2).transpose(1, 2))
    attend = net.blocks[0].attend
    expected = attend(tokens, tokens, tokens) if batch_first else attend(*[tokens.transpose(0, 1)] * 3)
    branch = expected[0] if batch_first else expected[0].transpose(0, 1)
    torch.testing.assert_close(found[blocks[0].branch], branch)
    assert found[blocks[0].context].shape == (2, 3, 16, WIDTH // 3)


def test_torch_exports_it_as_mmcv_calls_it() -> None:
    """Tensors have no data while a network is exported, so that what is one tensor is told by its storage."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = SelfAttention(attention())

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(*(x.transpose(0, 1) for _ in range(3)), need_weights=False)[0]

    net, x = Twice().eval(), torch.randn(2, 5, WIDTH)
    program = torch.export.export(net, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), net(x))
    with pytest.raises(NotImplementedError):
        net.attend(x, x, x + 1.0)
    with pytest.raises(NotImplementedError):
        net.attend(x[:, :4], x[:, :4], x[:, 1:])
