"""Blocks, attention maps and patch grids of many families of transformers, in tiny instances of timm's own classes.

Expected numbers follow from the options by hand: an image of 32x32 in patches of 4 has 8x8 of them, and so on.
"""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.layers import GluMlp, QuickGELU
from timm.models.mlp_mixer import MlpMixer
from timm.models.nest import Nest
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import (
    LayerScale,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from methods.core.graph import requirements
from methods.core.graph.attention import find_attention, patch_attention
from methods.core.graph.intercept import tap
from methods.core.graph.structure import NotATransformerError, branch_grid, find_blocks, patch_grid, to_grid
from methods.core.graph.trace import trace_net
from tasks.models.attention import unfused

SIDE = 32
SHAPE = (3, SIDE, SIDE)


def vit(**options) -> nn.Module:
    sizes = {"img_size": SIDE, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return VisionTransformer(**{**sizes, **options})


def other(name: str, **options) -> nn.Module:
    return timm.create_model(name, num_classes=5, **options)


# Per block: heads, windows, class and register tokens, grid of the map's keys; grid where it enters the residual sum.
GLOBAL = (3, 1, 1, (8, 8), (8, 8))
NO_CLASS = (3, 1, 0, (8, 8), (8, 8))
FAMILIES = {
    "quick gelu": (lambda: vit(act_layer=QuickGELU), [GLOBAL] * 2),
    "post-norm": (lambda: vit(block_fn=ResPostBlock, class_token=False, global_pool="avg"), [NO_CLASS] * 2),
    "layer scale": (lambda: vit(init_values=0.5), [GLOBAL] * 2),
    "parallel things": (lambda: vit(block_fn=ParallelThingsBlock), [GLOBAL] * 2),
    "parallel things, scaled": (lambda: vit(block_fn=ParallelThingsBlock, init_values=0.5), [GLOBAL] * 2),
    "parallel scaling": (lambda: vit(block_fn=ParallelScalingBlock), [GLOBAL] * 2),
    "gated mlp": (lambda: vit(mlp_layer=partial(GluMlp, gate_last=False), act_layer=nn.SiLU), [GLOBAL] * 2),
    "registers": (lambda: vit(reg_tokens=4), [(3, 1, 5, (8, 8), (8, 8))] * 2),
    "attention pooling": (lambda: vit(class_token=False, global_pool="map"), [NO_CLASS] * 2),
    "eva02": (
        lambda: other("eva02_tiny_patch14_224", img_size=SIDE, patch_size=4, embed_dim=24, depth=2, num_heads=3),
        [GLOBAL] * 2,
    ),
    "beit": (
        lambda: other("beit_base_patch16_224", img_size=SIDE, patch_size=4, embed_dim=24, depth=2, num_heads=3),
        [GLOBAL] * 2,
    ),
    "cait": (  # class attention afterwards has one query, and makes no map of patches
        lambda: other("cait_xxs24_224", img_size=SIDE, patch_size=4, embed_dim=24, depth=2, num_heads=3),
        [NO_CLASS] * 2,
    ),
    "swinv2": (
        lambda: other(
            "swinv2_tiny_window8_256",
            img_size=SIDE,
            patch_size=2,
            embed_dim=12,
            depths=(2, 2),
            num_heads=(2, 3),
            window_size=8,
        ),
        [(2, 4, 0, (8, 8), (16, 16))] * 2 + [(3, 1, 0, (8, 8), (8, 8))] * 2,
    ),
    "pvt": (  # keys and values are reduced by 8, 4, 2 and 1
        lambda: PyramidVisionTransformerV2(
            depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=5
        ),
        [(heads, 1, 0, (1, 1), (side, side)) for heads, side in ((1, 8), (2, 4), (3, 2), (4, 1))],
    ),
    "pit": (
        lambda: PoolingVisionTransformer(
            img_size=SIDE,
            patch_size=4,
            stride=4,
            base_dims=(8, 8),
            depth=(1, 1),
            heads=(2, 4),
            mlp_ratio=2,
            num_classes=5,
        ),
        [(2, 1, 1, (8, 8), (8, 8)), (4, 1, 1, (4, 4), (4, 4))],
    ),
    "tiny_vit": (
        lambda: other("tiny_vit_5m_224"),
        [(4, 4, 0, (7, 7), (8, 8))] * 2 + [(5, 1, 0, (14, 14), (4, 4))] * 6 + [(10, 1, 0, (7, 7), (2, 2))] * 2,
    ),
}
# Without blocks of the kind that methods need: attention over channels, of five axes, behind convolutions, or none.
OTHERS = {
    "xcit": lambda: other("xcit_nano_12_p16_224", img_size=SIDE, embed_dim=24, depth=2, num_heads=3),
    "nest": lambda: Nest(img_size=64, embed_dims=(8, 16, 32), num_heads=(1, 2, 4), depths=(1, 1, 1), num_classes=5),
    "mixer": lambda: MlpMixer(img_size=64, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5),
    "convnext": lambda: other("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    "resnet": lambda: other("resnet18"),
}


def ready(build) -> nn.Module:
    torch.manual_seed(0)
    net = unfused(build()).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, LayerScale):
            module.gamma.fill_(0.5)
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_k1_blocks_maps_and_grids_of_families(family):
    """FAULTS K1 "vit_base_patch16_clip_quickgelu_224, vit_base_patch16_rpn_224" and "swinv2, eva02, beit ... refused by
    class": taps have the shapes that follow from the options.
    """
    build, expected = FAMILIES[family]
    net = ready(build)
    side = 64 if family == "tiny_vit" else SIDE
    graph = trace_net(net, (3, side, side))
    blocks, layers, grid = find_blocks(graph), find_attention(graph), patch_grid(graph)
    found = [
        (layer.heads, layer.windows, layer.prefix, layer.grid, branch_grid(graph, block, grid))
        for block, layer in zip(blocks, layers, strict=True)
    ]
    assert found == expected
    points = [p for b, a in zip(blocks, layers, strict=True) for p in (b.context, b.branch, a.weights, a.products)]
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    _, taps = tap(net, images, points)
    for block, layer, (heads, windows, prefix, keys, patches) in zip(blocks, layers, expected, strict=True):
        weights = taps[layer.weights]
        assert weights.shape[:2] == taps[block.context].shape[:2] == (3 * windows, heads)
        assert weights.shape[-1] == prefix + keys[0] * keys[1]
        assert weights.shape[2] == taps[block.context].shape[2]
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert taps[layer.products].shape == weights.shape
        assert patch_attention(weights, layer).shape == (3 * windows, heads, keys[0] * keys[1])
        assert to_grid(taps[block.branch], grid).shape[:3] == (3, *patches)


def test_k1_branch_is_what_attention_adds():
    """A post-norm block's branch is normalised before the sum: exactly what the block adds to its input."""
    net = ready(FAMILIES["post-norm"][0])
    (first, *_), block = find_blocks(trace_net(net, SHAPE)), net.blocks[0]
    seen: list[Tensor] = []
    handle = block.norm1.register_forward_hook(lambda _module, _args, result: seen.append(result))
    _, found = tap(net, torch.rand(2, *SHAPE), [first.branch])
    handle.remove()
    assert torch.equal(found[first.branch], seen[0])
    assert (first.path, first.output.module) == ("blocks.0", "blocks.0")


@pytest.mark.parametrize("family", OTHERS)
def test_networks_without_token_attention_are_no_transformers(family):
    graph = trace_net(ready(OTHERS[family]), (3, 64, 64))
    with pytest.raises(NotATransformerError, match="no transformer block"):
        find_blocks(graph)


def test_partly_found_blocks_keep_their_order():
    """DaViT alternates attention within windows, which is found, with attention over channels, which is not."""
    net = ready(lambda: other("davit_tiny", depths=(1, 1), embed_dims=(12, 24), num_heads=(2, 3), window_size=4))
    blocks = find_blocks(trace_net(net, SHAPE))
    assert [block.path for block in blocks] == ["stages.0.blocks.0.0", "stages.1.blocks.0.0"]


def test_patches_from_a_linear_layer_have_no_known_grid():
    net = ready(lambda: other("naflexvit_base_patch16_gap", embed_dim=24, depth=1, num_heads=3))
    graph = trace_net(net, (3, 64, 64))
    assert len(find_blocks(graph)) == 1
    with pytest.raises(NotATransformerError, match="no convolution makes the patches"):
        patch_grid(graph)


def test_tokens_of_two_scales_are_refused():
    """CrossViT: the second branch's 16 + 1 tokens are not a merged form of the first one's 64."""
    net = ready(lambda: other("crossvit_tiny_240"))
    graph = trace_net(net, (3, 240, 240))
    with pytest.raises(NotATransformerError, match=r"197 tokens .* are not a grid .* 20x20"):
        find_attention(graph)
    model = VisionModel("crossvit", "classification", net, (3, 240, 240), (0.0,) * 3, (1.0,) * 3, 5, None, None, None)
    assert "2x197 for 2 images" in requirements.patches(model, "full")
    assert requirements.blocks(model, "full") is None


def test_blocks_on_parts_of_images_cannot_be_run_one_by_one():
    """MobileViT's blocks take four strided parts of each image as so many rows: not a batch of images."""
    net = ready(lambda: other("mobilevit_xxs"))
    model = VisionModel("m", "classification", net, (3, 64, 64), (0.0,) * 3, (1.0,) * 3, 5, None, None, None)
    assert "cannot be run alone" in requirements.pieces(model, "full")
    assert requirements.blocks(model, "full") is None


def test_blocks_that_take_two_tensors_of_images_cannot_be_run_one_by_one():
    """GCViT's blocks take queries of the whole image beside the tokens: training on parts of a batch broke."""
    net = ready(lambda: other("gcvit_xxtiny")).to("meta")
    model = VisionModel("g", "classification", net, (3, 224, 224), (0.0,) * 3, (1.0,) * 3, 5, None, None, None)
    assert "other than one tensor of the images" in requirements.pieces(model, "full")
    assert requirements.patches(model, "full") is None


def test_windows_that_do_not_cover_the_image_are_refused():
    """Rows of a softmax that are not windows of the image: MobileViT's strided groups, with a token added to each."""

    class Added(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(torch.cat([x.mean(1, keepdim=True), x], 1))[:, 1:]

    net = ready(lambda: other("mobilevit_xxs"))
    stage = net.stages[2][1]
    stage.transformer = nn.Sequential(*map(Added, stage.transformer))
    with pytest.raises(NotATransformerError, match=r"tokens .* windows are not a grid of patches"):
        find_attention(trace_net(net, (3, 128, 128)))
