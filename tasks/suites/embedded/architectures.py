"""Architectures of the embedded zoo: ordinary timm classes at a size that two CPU cores can train and evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

IMAGE_SIZE = 32
CLASSES = 10
# Statistics of the 60,000 training images in [0, 1] before padding (Fashion-MNIST, 28x28).
MEAN, STD = (0.2860,), (0.3530,)


def build(name: str) -> nn.Module:
    """Return the untrained architecture `name` (`vit` or `swin`) for 1x32x32 inputs.

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
    raise KeyError(name)
