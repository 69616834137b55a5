"""What the gate keeps of a measured cell: outcome of every image, and facts that must not change at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness.cell import Cell
from harness.errors import UsageError
from harness.record import Quantization, Record
from harness.regress.suite import name_of
from harness.store import Store

Fact = int | float | str


@dataclass(frozen=True)
class Measurement:
    """A cell's number. `value` is 100 times the mean of `correct` (images,); `facts` are counts and mean widths."""

    cell: Cell
    metric: str
    value: float
    correct: NDArray[np.bool_]
    facts: Mapping[str, Fact] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of evaluation images."""
        return len(self.correct)


def measurement(record: Record, store: Store) -> Measurement:
    """The measurement of an `ok` record.

    Raises:
        UsageError: its outcomes cannot be read, or its metric is no share of images that are right.
    """
    name = name_of(record.cell)
    outcomes = store.outcomes(record.key)
    metric = str(record.primary_metric)
    value = record.metrics[metric]
    correct = outcomes["correct"].to_numpy(dtype=bool) if "correct" in outcomes else np.zeros(0, dtype=bool)
    if not len(correct) or not is_share(value, correct):
        raise UsageError(
            f"the gate compares images that are right or wrong, and {metric} of '{name}' is no share of such images; "
            f"take task '{record.cell.task}' out of the suite"
        )
    return Measurement(record.cell, metric, value, correct, _facts(record, store))


def is_share(value: float, correct: NDArray[np.bool_]) -> bool:
    """Whether `value` is the share of images that are right, in points."""
    return abs(value - 100 * float(correct.mean())) < 1e-6


def _facts(record: Record, store: Store) -> dict[str, Fact]:
    facts: dict[str, Fact] = _quantized(record.quantization) if record.quantization else {}
    facts |= {f"counted {name}": number for name, number in sorted(record.counters.items())}
    kept = store.images(record.key)
    if kept is not None:
        facts["image size"] = "×".join(map(str, kept.shape[1:]))
    return facts


def _quantized(found: Quantization) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "weight sites": found.weight_sites,
        "activation sites": found.activation_sites,
        "mean weight bits": found.mean_weight_bits,
        "mean layer bits": found.mean_layer_bits,
    }
    if found.mean_activation_bits is not None:
        facts["mean activation bits"] = found.mean_activation_bits
    return facts
