"""What the gate keeps of a measured cell: outcome of every image, and facts that must not change at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from harness.api.errors import UsageError
from harness.api.plugins import TaskInfo, import_target
from harness.identity.cell import Cell
from harness.io.canonical import digest
from harness.regress.outcomes import Correct, Dense, is_share
from harness.regress.suite import name_of
from harness.report import stats
from harness.results.record import Quantization, Record
from harness.results.store import Store

Fact = int | float | str
SAME = 1e-3  # points between a metric as its task evaluates it and as it is made of stored outcomes

COUNTED = "counted "  # before the names of facts that a method counted


@dataclass(frozen=True)
class Measurement:
    """A cell's number with the outcomes behind it; `facts` are counts and mean widths."""

    cell: Cell
    metric: str
    value: float
    outcomes: Correct | Dense
    facts: Mapping[str, Fact] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of evaluation images."""
        return len(self.outcomes)


def measurement(record: Record, store: Store, task: TaskInfo) -> Measurement:
    """The measurement of an `ok` record.

    Raises:
        UsageError: its outcomes cannot be read, or the task does not say how its metric is made of them.
    """
    metric = str(record.primary_metric)
    value, facts = record.metrics[metric], _facts(record, store)
    frame = store.outcomes(record.key)
    wrong = UsageError(
        f"the gate compares {metric} of '{name_of(record.cell)}' image by image, and it is neither the share of images "
        f"that are `correct` nor what `resampling` of task '{task.name}' makes of them; take it out of the suite"
    )
    if task.metrics and metric != task.metrics[0].name:
        raise wrong
    if not task.resampling:
        correct = frame["correct"].to_numpy(dtype=bool) if "correct" in frame else np.zeros(0, dtype=bool)
        if not is_share(value, correct):
            raise wrong
        return Measurement(record.cell, metric, value, correct, facts)
    dense = Dense.of(frame, import_target(task.resampling)(frame))
    if not abs(dense.resampled.value - value) < SAME:
        raise wrong
    facts["resamples"] = digest(stats.resamples(len(frame))[0].tolist())[:8]  # draws of others cannot be paired
    # Two ways to compute one number differ in the last digits, which is not a move.
    dense = Dense(dense.digests, replace(dense.resampled, value=value))
    return Measurement(record.cell, metric, value, dense, facts)


def _facts(record: Record, store: Store) -> dict[str, Fact]:
    facts: dict[str, Fact] = _quantized(record.quantization) if record.quantization else {}
    facts |= {f"{COUNTED}{name}": number for name, number in sorted(record.counters.items())}
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
