"""Holds what a runtime computes against the fake-quantized model, and that against the float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.results.exported import Difference, Verdict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Shares of equal predictions in points. Rounding is chaotic: a last bit moves a value over a boundary and the step
# spreads, so that equal bits cannot be asked for.
SAME, CLOSE = 99.5, 98.0
# Differences by that which quantization makes. A model of few bits has images near a boundary in any number.
SMALL, TOLERABLE = 0.1, 0.35

Forward = Callable[["Tensor"], "list[np.ndarray]"]


@dataclass
class _Sums:
    values: int = 0
    absolute: float = 0.0
    square: float = 0.0
    largest: float = 0.0
    images: int = 0
    same: int = 0
    classes: bool = True

    def add(self, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> None:
        import numpy as np

        for one, other in zip(left, right, strict=True):
            apart = np.abs(one.astype(np.float64) - other)
            self.values += apart.size
            self.absolute += float(apart.sum())
            self.square += float(np.square(apart).sum())
            self.largest = max(self.largest, float(apart.max(initial=0.0)))
        self.classes = self.classes and len(left) == 1 and left[0].ndim == 2
        self.images += len(left[0])
        if self.classes:
            self.same += int((left[0].argmax(1) == right[0].argmax(1)).sum())

    def difference(self) -> Difference:
        return Difference(
            same=100.0 * self.same / max(1, self.images) if self.classes else None,
            mean=self.absolute / max(1, self.values),
            rms=(self.square / max(1, self.values)) ** 0.5,
            largest=self.largest,
        )


@dataclass
class Comparison:
    """Runs several models on each batch of an evaluation, whose number is that of the first.

    Args:
        runtime: the exported file.
        fake: the fake-quantized model.
        plain: the float model.
    """

    runtime: Forward
    fake: Forward
    plain: Forward
    _to_fake: _Sums = field(default_factory=_Sums)
    _to_float: _Sums = field(default_factory=_Sums)

    def __call__(self, images: Tensor) -> Any:
        """The runtime's outputs as tensors: one, or a tuple of several."""
        import torch

        outputs, fake = self.runtime(images), self.fake(images)
        self._to_fake.add(outputs, fake)
        self._to_float.add(fake, self.plain(images))
        found = tuple(torch.from_numpy(output) for output in outputs)
        return found[0] if len(found) == 1 else found

    @property
    def to_fake(self) -> Difference:
        """The runtime's outputs against those of the fake-quantized model."""
        return self._to_fake.difference()

    @property
    def quantization(self) -> Difference:
        """The fake-quantized model's outputs against those of the float model."""
        return self._to_float.difference()

    @property
    def relative(self) -> float:
        """The one by the other, of the roots of mean squares."""
        return self.to_fake.rms / max(self.quantization.rms, 1e-12)


def verdict(to_fake: Difference, relative: float) -> Verdict:
    """Whether a runtime computes the quantized model: by its predictions, or where these are chaotic by its values."""
    if to_fake.same is None:
        return "same" if relative <= SMALL else "close" if relative <= TOLERABLE else "wrong"
    if to_fake.same >= SAME:
        return "same"
    return "close" if to_fake.same >= CLOSE or relative <= TOLERABLE else "wrong"


def arrays(model: Callable[[Tensor], Any]) -> Forward:
    """A model in torch as a function that gives arrays."""
    import torch

    def run(images: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            output = model(images)
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        return [each.detach().float().cpu().numpy() for each in outputs]

    return run
