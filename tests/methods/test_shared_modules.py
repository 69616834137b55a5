"""One instance of a module without parameters, called from several places: the same network as with one in each."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SHAPE, FakeContext, images, tiny_model
from torch import nn

from harness.api.spec import BitSpec
from methods.calibrators.minmax.info import INFO as MINMAX
from methods.core.graph import requirements
from methods.core.graph.attention import find_attention
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace_net
from methods.core.range_calibrator import RangeCalibrator


class Attention(nn.Module):
    """Attention of two heads over tokens (n, t, 16), whose softmax is a module."""

    def __init__(self, softmax: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.softmax = nn.Linear(16, 48), nn.Linear(16, 16), softmax

    def forward(self, x, **_):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.proj((self.softmax(q @ k.transpose(-2, -1)) @ v).transpose(1, 2).flatten(2))


class Kept(nn.Module):
    """Calls a function that is a module of somebody else."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self._function = [function]

    def forward(self, x):
        return self._function[0](x)


def vit(activation=None, softmax=None):
    """The tiny ViT, `activation` and `softmax` called by both blocks if given, else each with its own."""
    model = tiny_model("vit")
    torch.manual_seed(0)
    for block in model.net.blocks:
        block.mlp.act = activation or nn.GELU()
        block.attn = Attention(softmax or nn.Softmax(-1)).eval().requires_grad_(False)
    return model


@pytest.mark.parametrize("shared", [{"activation": nn.GELU()}, {"softmax": nn.Softmax(-1)}], ids=list)
def test_a_shared_function_has_the_sites_of_one_for_each_caller(shared):
    own, found = trace_net(vit().net, SHAPE), trace_net(vit(**shared).net, SHAPE)
    assert [op.key for op in found.ops] == [op.key for op in own.ops]
    for scheme in ("full", "matmul"):
        assert find_sites(found, scheme, BitSpec(4, 4)) == find_sites(own, scheme, BitSpec(4, 4))
    assert [block.softmax for block in find_blocks(found)] == [block.softmax for block in find_blocks(own)]
    assert [each.products for each in find_attention(found)] == [each.products for each in find_attention(own)]


def test_ranges_of_a_shared_gelu_are_those_of_its_callers():
    spec, x = BitSpec(8, 8), images(8)
    found = []
    for model in (vit(), vit(activation=nn.GELU())):
        quantized = RangeCalibrator(MINMAX.options()).calibrate(model, x, spec=spec, scheme="full", ctx=FakeContext())
        found.append({str(s): float(quantized.activations[s.point].high) for s in quantized.sites.activations})
    assert found[0] == found[1]
    highs = [high for label, high in found[1].items() if "mlp.act" in label]
    assert len(highs) == 2
    assert highs[0] != highs[1]


def test_what_is_kept_elsewhere_counts_as_the_callers_own_arithmetic():
    """Two blocks that call one function by a reference that is no submodule of theirs."""
    model, function = vit(), nn.GELU()
    model.net.function = function
    for block in model.net.blocks:
        block.mlp.act = Kept(function)
    found = [str(op.key) for op in trace_net(model.net, SHAPE).of_kind("activation")]
    assert found == ["blocks.0.mlp.act/activation.0", "blocks.1.mlp.act/activation.0"]


def test_a_layer_with_weights_keeps_its_name_in_all_calls():
    model = vit()
    model.net.blocks[1].mlp = model.net.blocks[0].mlp
    found = [str(op.key) for op in trace_net(model.net, SHAPE).ops if ".mlp" in op.key.module]
    assert found == ["blocks.0.mlp.fc1/linear.0", "blocks.0.mlp.act/activation.0", "blocks.0.mlp.fc2/linear.0"] * 2


@pytest.mark.parametrize("layer", ["mlp", "attn.proj", "mlp.fc2"])
def test_blocks_that_share_a_layer_cannot_be_run_one_by_one(layer):
    """What is found for it in one block would change the other: methods that go block by block are skipped."""
    model = vit()
    parent, _, name = layer.rpartition(".")
    first, second = (block.get_submodule(parent) for block in model.net.blocks)
    setattr(second, name, getattr(first, name))
    sentence = requirements.pieces(model, "matmul")
    assert sentence is not None
    assert f"layer blocks.0.{layer}" in sentence
    assert "runs in several blocks" in sentence
    assert requirements.sites(model, "matmul") is None


def test_blocks_that_share_nothing_can_be():
    assert requirements.pieces(vit(activation=nn.GELU()), "matmul") is None
