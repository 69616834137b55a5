"""Architectures of the CIFAR-10 zoo: timm's ViT and Swin at 32x32 behind a convolutional stem.

Patches of 4x4 pixels cut straight from 32x32 images leave a transformer to learn from 50,000 examples what edges are;
a few 3x3 convolutions (Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881) spare it that
and most of the epochs. Everything behind them is timm's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE_SIZE = 32
CLASSES = 10


class ConvStem(PatchEmbed):
    """timm's patch embedding with 3x3 convolutions, batch norm and ReLU in place of the one strided convolution.

    Args:
        channels: of the convolutions before the last, which is 1x1 and linear.
        strides: of these; their product is the patch size.
        folded: no batch norms, as they are in the weights (`fold`).
    """

    def __init__(
        self,
        *args: Any,
        embed_dim: int,
        channels: Sequence[int],
        strides: Sequence[int],
        folded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "embed_dim": embed_dim})
        layers: list[nn.Module] = []
        width = 3
        for out, stride in zip(channels, strides, strict=True):
            layers.append(nn.Conv2d(width, out, 3, stride, padding=1, bias=folded))
            layers += [nn.ReLU()] if folded else [nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1))  # type: ignore[assignment]


def fold(net: nn.Module) -> dict[str, Any]:
    """State of `net`, its stem's batch norms (running statistics) multiplied into the convolutions before them.

    The keys are those of the same architecture with `folded=True`.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    state = {k: v for k, v in net.state_dict().items() if not k.startswith("patch_embed.proj.")}
    old = list(net.eval().patch_embed.proj)  # type: ignore[union-attr,arg-type]
    new: list[nn.Module] = []
    for layer in old:
        if isinstance(layer, nn.BatchNorm2d):
            new[-1] = fuse_conv_bn_eval(new[-1], layer)  # type: ignore[type-var]
        else:
            new.append(layer)
    return state | {f"patch_embed.proj.{k}": v for k, v in nn.Sequential(*new).state_dict().items()}


def build(name: str, *, folded: bool = True) -> nn.Module:
    """The untrained architecture `name` (`vit` or `swin`) for 3x32x32 inputs, `folded` or as it is trained.

    Raises:
        KeyError: no such architecture.
    """
    if name == "vit":
        return VisionTransformer(
            img_size=IMAGE_SIZE,
            num_classes=CLASSES,
            patch_size=4,
            embed_dim=128,
            depth=12,
            num_heads=4,
            class_token=False,
            global_pool="avg",
            embed_layer=partial(ConvStem, channels=(64, 64, 128), strides=(2, 1, 2), folded=folded),
        )
    if name == "swin":
        return SwinTransformer(
            img_size=IMAGE_SIZE,
            num_classes=CLASSES,
            patch_size=2,
            embed_dim=64,
            depths=(2, 4, 2),
            num_heads=(2, 4, 8),
            window_size=4,
            embed_layer=partial(ConvStem, channels=(32, 64), strides=(1, 2), folded=folded),  # type: ignore[arg-type]
        )
    raise KeyError(name)
