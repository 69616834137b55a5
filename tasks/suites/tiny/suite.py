"""Tiny networks with random weights, and random images: to see in seconds whether a plugin does as it should.

Numbers of this suite mean nothing. Weights are enlarged, so that outputs differ between images as those of trained
networks do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed
from tasks.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.contracts import VisionModel

SHAPE = (1, 16, 16)
CLASSES = 5
IMAGES, CALIBRATION = 60, 60
MEAN, STD = 0.5, 0.25
BATCH = 20
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


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"vit": _vit, "swin": _swin}


def build(name: str) -> nn.Module:
    """The network `name` of NETWORKS, always with the same random weights.

    Raises:
        UsageError: there is no such network.
    """
    if name not in NETWORKS:
        raise UsageError(f"suite 'tiny' has no model '{name}'; it has {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETWORKS[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(ENLARGED)
    return net


class TinyData:
    """Smooth random fields with random labels; image i has class i % 5."""

    classes = CLASSES
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of evaluation images."""
        return IMAGES

    @property
    def calibration_size(self) -> int:
        """Number of calibration images."""
        return CALIBRATION

    def identity(self) -> str:
        """Name of the recipe, which alone makes the images."""
        return "tiny-1"

    def calibration_identity(self) -> str:
        """Empty: `identity` covers both splits."""
        return ""

    def evaluation(self, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (b, 1, 16, 16) and labels (b,), the first `count`."""
        check_not_sealed("evaluation images")
        labels = torch.arange(count) % CLASSES
        yield from zip(_fields(IMAGES, seed=1)[:count].split(BATCH), labels.split(BATCH), strict=True)

    def calibration(self, model: VisionModel, indices: Sequence[int]) -> Tensor:
        """Images at `indices` of the pool (n, 1, 16, 16)."""
        check_not_sealed("calibration images")
        return _fields(CALIBRATION, seed=2)[list(indices)]


def _fields(count: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear") - MEAN) / STD
