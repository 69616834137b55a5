"""Tiny networks with random weights, enlarged so that outputs differ between images as those of trained networks do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from harness.api.errors import UsageError
from tasks.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

SHAPE = (1, 16, 16)
CLASSES = 5
MEAN, STD = 0.5, 0.25
ENLARGED = 3.0  # factor of random weights
INPUT = Preprocessing(SHAPE, (MEAN,), (STD,))


def _vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2
    )


def _swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=16,
        patch_size=2,
        in_chans=1,
        num_classes=CLASSES,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=4,
    )


def _vim() -> nn.Module:
    from tasks.models.vision_mamba import VisionMamba

    return VisionMamba(img_size=16, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=2, states=4)


def _efficientvit() -> nn.Module:
    from timm.models.efficientvit_mit import EfficientVit

    return EfficientVit(
        in_chans=1, num_classes=CLASSES, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), head_dim=4, head_widths=(8, 8)
    )


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"vit": _vit, "swin": _swin}
FURTHER: Mapping[str, Callable[[], nn.Module]] = {
    "vim": _vim,
    "efficientvit": _efficientvit,
}  # what few plugins are for


def build(name: str) -> nn.Module:
    """The network `name` of NETWORKS or FURTHER, always with the same random weights.

    Raises:
        UsageError: there is no such network.
    """
    known = {**NETWORKS, **FURTHER}
    if name not in known:
        raise UsageError(f"suite 'tiny' has no model '{name}'; it has {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = known[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(ENLARGED)
    return net
