"""Architectures of the embedded zoo: ordinary timm classes, and a Vision Mamba, at a size that two CPU cores can train
and evaluate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

IMAGE_SIZE = 32
CLASSES = 10
# Statistics of the 60,000 training images in [0, 1] before padding (Fashion-MNIST, 28x28).
MEAN, STD = (0.2860,), (0.3530,)


def build(name: str) -> nn.Module:
    """Return the untrained architecture `name` (`vit`, `swin`, `efficientvit` or `vim`) for 1x32x32 inputs.

    One input channel, not three equal ones: three equal channels would leave the colour directions of the patch
    embedding untrained, and image synthesis wanders into exactly those.

    Raises:
        KeyError: no such architecture.
    """
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    shared: dict[str, Any] = {"img_size": IMAGE_SIZE, "in_chans": 1, "num_classes": CLASSES}
    if name == "vit":
        return VisionTransformer(patch_size=4, embed_dim=128, depth=6, num_heads=4, **shared)
    if name == "swin":
        return SwinTransformer(patch_size=2, embed_dim=48, depths=(2, 4), num_heads=(3, 6), window_size=4, **shared)
    if name == "efficientvit":
        return _efficientvit()
    if name == "vim":
        from tasks.models.vision_mamba import VisionMamba

        return VisionMamba(patch_size=4, embed_dim=48, depth=3, states=4, **shared)
    raise KeyError(name)


def _efficientvit() -> nn.Module:
    """MIT's EfficientViT (ReLU linear attention) with few channels: 16 tokens in the attention of its last stage."""
    import torch
    from timm.models.efficientvit_mit import EfficientVit

    net = EfficientVit(
        in_chans=1,
        num_classes=CLASSES,
        widths=(8, 16, 24, 32),
        depths=(1, 1, 2, 2),
        head_dim=8,
        head_widths=(64, 64),
    )
    # Of 32 pixels, five halvings as for 224 would leave attention a single token to look at.
    halving = net.get_submodule("stages.1.blocks.0.main.depth_conv.conv")
    assert isinstance(halving, torch.nn.Conv2d)
    halving.stride = (1, 1)
    return net
