"""How far a quantized model is from the float one on images that had no part in it: no label, no real image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.images import ImageSet

if TYPE_CHECKING:
    from harness.api.plugins import PluginInfo


@torch.no_grad()
def output_distance(model: VisionModel, quantized: QuantizedModel, images: Tensor) -> float:
    """The task's distance of the quantized from the float output on normalised images (n, c, h, w), all at once.

    For classifiers the mean KL divergence in nats.
    """
    return float(model.output_distance(quantized(images), ImageSet.whole(images).through(model.net)))


class HeldOutContext:
    """Serves a source that makes held-out images (implements `RunContext`): another seed, and no trace in the record.

    A repetition's sources start from the same noise; what is made with this starts from other noise, aims at other
    pseudo-labels, and is cached apart. Seconds and counters go to the run, losses and snapshots nowhere.

    Args:
        ctx: the run's own context.
    """

    def __init__(self, ctx: RunContext) -> None:
        self._ctx = ctx

    @property
    def scope(self) -> Mapping[str, Any]:
        """The run's."""
        return self._ctx.scope

    def generator(self, *names: str) -> torch.Generator:
        """Seeded from what the run's is and from being held out."""
        return self._ctx.generator("held-out", *names)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """The run's."""
        return self._ctx.stage(name)

    def count(self, **amounts: int) -> None:
        """The run's."""
        self._ctx.count(**amounts)

    def cached_images(
        self,
        identity: Mapping[str, Any],
        make: Callable[[], Tensor],
        by: PluginInfo | None = None,
        *,
        held_out: bool = True,
    ) -> Tensor:
        """The run's, as held out."""
        return self._ctx.cached_images(identity, make, by, held_out=held_out)

    def keep_images(self, images: Tensor) -> None:
        """Not kept: they calibrate nothing."""

    def snapshot(self, step: int, images: Tensor) -> None:
        """Not kept."""

    def diagnostics(self, name: str, values: Mapping[str, Any]) -> None:
        """Not kept."""

    def progress(self, text: str, fraction: float) -> None:
        """Shown as what it is for."""
        self._ctx.progress(f"{text} (held out)", fraction)
