"""Widths around a layer in mixed precision, and bit operations, against counts made by hand."""

from __future__ import annotations

import pytest
from tiny_networks import CLASSES, NETWORKS, tiny_model

from harness.api.spec import BitSpec
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace

D, TOKENS, HEADS = 16, 17, 2  # of the tiny ViT: 16 patches of 4x4 pixels and the class token; 2 blocks


def vit_sites(scheme: str = "full", bits: str = "W4A6", **extra):
    return find_sites(trace(tiny_model("vit")), scheme, BitSpec.parse(bits), **extra)


def block_macs() -> dict[str, int]:
    return {
        "linear": TOKENS * (D * 3 * D + D * D + 2 * D * 4 * D),  # qkv, proj, fc1 and fc2
        "logits": TOKENS * TOKENS * D,
        "values": TOKENS * TOKENS * D,
    }


@pytest.mark.parametrize(("scheme", "softmax_bits"), [("full", None), ("full", 8), ("matmul", None)])
def test_bit_operations_equal_the_count_by_hand(scheme, softmax_bits):
    b = block_macs()
    patches = 16 * 16 * D  # 16 patches, 4x4 values of one channel each
    softmax = 32 if (scheme, softmax_bits) == ("full", None) else (softmax_bits or 6)
    image = 8 if scheme == "matmul" else 6
    expected = patches * 4 * image + D * CLASSES * 4 * 6
    expected += 2 * (b["linear"] * 4 * 6 + b["logits"] * 6 * 6 + b["values"] * softmax * 6)
    assert vit_sites(scheme, softmax_bits=softmax_bits).bit_operations == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_every_activation_goes_with_a_weight(name):
    for scheme in ("full", "matmul"):
        sites = find_sites(trace(tiny_model(name)), scheme, BitSpec.parse("MP4"))
        weights = {site.parameter for site in sites.weights}
        assert all(site.layers and set(site.layers) <= weights for site in sites.activations)
        assert {site.bits for site in (*sites.weights, *sites.activations)} == {8}


def test_activations_follow_the_layer_that_they_feed_or_else_the_last_before_them():
    sites = vit_sites(bits="MP4")
    layers = {str(site): site.layers for site in sites.activations}
    block = "blocks.1"
    assert layers["patch_embed.proj/conv.0:in0"] == ("patch_embed.proj.weight",)
    assert layers[f"{block}.norm1/layer_norm.0:out"] == (f"{block}.attn.qkv.weight",)
    assert layers[f"{block}.attn.qkv/linear.0:out"] == (f"{block}.attn.qkv.weight",)
    assert layers[f"{block}.attn/matmul.0:out"] == (f"{block}.attn.qkv.weight",)
    assert layers[f"{block}.attn/matmul.1:out"] == (f"{block}.attn.proj.weight",)
    assert layers[f"{block}/add.1:out"] == (f"{block}.mlp.fc2.weight",)
    assert layers["norm/layer_norm.0:out"] == ("head.weight",)
    widths = {site.parameter: 3 for site in sites.weights} | {"head.weight": 7}
    mixed = sites.with_widths(widths, lambda bits: min(8, bits + 2))
    assert {site.parameter: site.bits for site in mixed.weights} == widths
    assert {site.bits for site in mixed.activations if "head.weight" in site.layers} == {8}
    assert {site.bits for site in mixed.activations if "head.weight" not in site.layers} == {5}


def test_a_given_activation_width_stays():
    sites = vit_sites(bits="MP4A6")
    mixed = sites.with_widths({site.parameter: 3 for site in sites.weights}, lambda bits: bits + 2)
    assert {site.bits for site in mixed.activations} == {6}


def test_a_convolutions_input_keeps_8_bits_in_scheme_matmul():
    sites = vit_sites("matmul", "MP4")
    mixed = sites.with_widths({site.parameter: 2 for site in sites.weights}, lambda bits: bits + 2)
    assert next(s.bits for s in mixed.activations if s.op.kind == "conv") == 8
