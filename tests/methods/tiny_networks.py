"""Tiny networks and a run context without harness, for tests of methods."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.contracts import VisionModel
from tasks.models.attention import unfused
from tasks.suites.tiny.zoo import CLASSES, FURTHER, NETWORKS, SHAPE


def _distance(quantized: Tensor, reference: Tensor) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(quantized, -1), functional.softmax(reference, -1), reduction="batchmean"
    )


def tiny_model(name: str, scale: float = 3.0) -> VisionModel:
    """A random network, its weights enlarged so that its outputs differ between images."""
    torch.manual_seed(0)
    net = unfused({**NETWORKS, **FURTHER}[name]().eval())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    net.requires_grad_(False)
    return VisionModel(
        name=name,
        task="classification",
        net=net,
        input_shape=SHAPE,
        mean=(0.3,),
        std=(0.4,),
        num_classes=CLASSES,
        sample_targets=lambda n, generator: torch.randint(CLASSES, (n,), generator=generator),
        target_loss=functional.cross_entropy,
        output_distance=_distance,
    )


class FakeContext:
    """Implements `RunContext` without cache or records."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.scope: Mapping[str, Any] = {"seed": seed}
        self.counters: Counter[str] = Counter()
        self.kept: Tensor | None = None
        self.found: dict[str, Any] = {}
        self.stages: list[str] = []
        self.snapshots: dict[int, Tensor] = {}

    def generator(self, *names: str) -> torch.Generator:
        digest = hashlib.sha256(repr((self.seed, names)).encode()).hexdigest()
        return torch.Generator().manual_seed(int(digest[:15], 16))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def count(self, **amounts: int) -> None:
        self.counters.update(amounts)

    def cached_images(
        self, identity: Mapping[str, Any], make: Callable[[], Tensor], by: Any = None, *, held_out: bool = False
    ) -> Tensor:
        return make()

    def keep_images(self, images: Tensor) -> None:
        self.kept = images

    def snapshot(self, step: int, images: Tensor) -> None:
        self.snapshots[step] = images.detach().clone()

    def diagnostics(self, name: str, values: Mapping[str, Any]) -> None:
        self.found[name] = values

    def progress(self, text: str, fraction: float) -> None:
        pass


class RandomImages:
    """Implements `CalibrationData` with noise."""

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *SHAPE, generator=generator)


def images(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
