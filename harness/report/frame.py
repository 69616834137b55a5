"""From records to one tidy DataFrame, a row per cell. Everything else of the report works on this frame."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.api.errors import UsageError
from harness.catalog.metrics import secondary
from harness.identity.names import Part, parse_name, plain_name
from harness.io.canonical import canonical_json
from harness.io.text import visible, visible_lines
from harness.plan.plan import REFERENCES
from harness.report import stats
from harness.results.record import Record

# Which images every method was right on, or its metric on resampled images, by cell key; cells without are absent.
Outcome = NDArray[np.bool_] | stats.Resampled
Outcomes = Mapping[str, Outcome]


class Right(Outcomes):
    """Outcomes with a bit for every image: those of a large folder would fill the memory as truth values."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[NDArray[np.uint8], int] | stats.Resampled] = {}

    def add(self, key: str, outcome: Outcome) -> None:
        """Keep the outcome of a cell."""
        own = outcome if isinstance(outcome, stats.Resampled) else (np.packbits(outcome), len(outcome))
        self._found[key] = own

    def __getitem__(self, key: str) -> Outcome:
        found = self._found[key]
        if isinstance(found, stats.Resampled):
            return found
        return np.unpackbits(found[0], count=found[1]).view(np.bool_)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


# What makes two numbers comparable: methods are ranked only within such a group.
CONTEXT = ["suite", "task", "data", "limit"]
GROUP = [*CONTEXT, "scheme", "bits"]
TEXTS = ("suite", "task", "data", "model", "method", "scheme", "bits", "weights", "metric", "device")
STAGES = ("synthesize", "images", "calibrate", "search", "refresh")
FLOOR, _ = REFERENCES  # the image source below which no method should fall
NOT_QUANTIZING = ("load", "check", "evaluate")  # stages that every method needs alike


def cells_frame(records: Iterable[Record], outcomes: Outcomes) -> pd.DataFrame:
    """One row per cell, sorted by its coordinates, so that the same records give the same frame in any order.

    `method` and `model` tell variants apart that share a name: other options are added to the method, other weights to
    the model. `accuracy` is the suite's primary metric in points, `images` the number of images behind it.
    """
    found = list(records)
    names = method_names(found)
    rows = [_row(record, outcomes) | {"method": names[record.key]} for record in found]
    frame = pd.DataFrame(rows, columns=list(_row_columns()))
    frame["method"] = label_variants(frame["method"].tolist(), frame["options"].tolist())
    several = frame.groupby(["suite", "model"])["weights"].transform("nunique") > 1
    frame["model"] = frame["model"].where(~several, frame["model"] + "@" + frame["weights"].str[:8])
    for name in TEXTS:  # from here on, what stands in a frame can be shown
        frame[name] = [visible(value) if isinstance(value, str) else value for value in frame[name]]
    frame["reason"] = [visible_lines(value) if isinstance(value, str) else value for value in frame["reason"]]
    return frame.sort_values([*GROUP, "model", "method", "seed", "key"], ignore_index=True)


def _row(record: Record, outcomes: Outcomes) -> dict[str, Any]:
    cell, quantization = record.cell, record.quantization
    right = outcomes.get(record.key)
    failure = record.failure
    row: dict[str, Any] = {
        # Other images are another suite to a report: nothing is averaged, ranked or compared with the clean ones.
        "suite": f"{cell.suite}, {cell.corruption}" if cell.corruption else cell.suite,
        "task": cell.task,
        "data": cell.data,
        "limit": "all" if cell.limit is None else str(cell.limit),
        "scheme": cell.scheme,
        "bits": cell.bits,
        "model": cell.model,
        "weights": cell.weights,
        "method": cell.method,
        "options": canonical_json(cell.options),
        "role": _role(record),
        "origin": record.origin,
        "trains": record.trains,
        "seed": cell.seed,
        "status": record.status,
        "reason": f"{failure.type}: {failure.message}" if failure else record.reason,
        "verified": record.unverified is None,  # whether what was quantized is known to be what was asked for
        "metric": record.primary_metric,
        "accuracy": record.metrics.get(record.primary_metric or "", np.nan),
        **{name: record.metrics.get(name, np.nan) for name in secondary()},
        "per_image": isinstance(right, np.ndarray),  # accuracy is the share of images that `outcomes` has right
        "images": len(right) if right is not None else cell.limit,
        "calibration_images": _calibration_images(record),
        "seconds": record.seconds,
        "peak_memory_mib": record.peak_memory_mib,
        "added_memory_mib": record.added_memory_mib,
        "weight_mib": quantization.weight_mib if quantization else None,
        "gbops": quantization.bit_operations / 1e9 if quantization and quantization.bit_operations else None,
        "mean_weight_bits": quantization.mean_weight_bits if quantization else None,
        "mean_layer_bits": quantization.mean_layer_bits if quantization else None,
        "mean_activation_bits": quantization.mean_activation_bits if quantization else None,
        "effective_weight_bits": quantization.effective_weight_bits if quantization else None,
        "effective_activation_bits": quantization.effective_activation_bits if quantization else None,
        "weight_sites": quantization.weight_sites if quantization else None,
        "activation_sites": quantization.activation_sites if quantization else None,
        "device": record.provenance.device,
        "key": record.key,
    }
    for name in STAGES:
        stage = record.stages.get(name)
        row[f"{name}_s"] = stage.seconds if stage else None
        row[f"{name}_cached"] = stage.cached if stage else False
    quantizing = [stage.seconds for name, stage in record.stages.items() if name not in NOT_QUANTIZING]
    row["total_s"] = sum(quantizing) if quantizing else None
    return row


def _row_columns() -> list[str]:
    """Columns of the frame, also when there are no records."""
    fixed = (
        "suite task data limit scheme bits model weights method options role origin trains seed status reason verified"
        f" metric accuracy {' '.join(secondary())} per_image images calibration_images seconds"
        " peak_memory_mib added_memory_mib weight_mib gbops"
        " mean_weight_bits mean_layer_bits mean_activation_bits effective_weight_bits effective_activation_bits"
        " weight_sites activation_sites device key"
    )
    return [*fixed.split(), *(f"{name}{suffix}" for name in STAGES for suffix in ("_s", "_cached")), "total_s"]


def _role(record: Record) -> str:
    if record.cell.is_float:
        return "float"
    if record.data == "images":
        return "ceiling"
    return "floor" if re.split(r"[\[+]", record.cell.method)[0] == FLOOR else "method"


def _calibration_images(record: Record) -> int | None:
    """How many images the method calibrated on, as it counted them or as an option says; None where neither does."""
    parts = record.cell.options.get("parts", {})
    values = (
        [part.get("images") for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    )
    stated = next((value for value in values if isinstance(value, int)), None)
    return record.counters.get("images", stated)


def method_names(records: Iterable[Record]) -> dict[str, str]:
    """The method's name by key: that of its cell, but one name for the same options. `psaq` whose options were given
    apart is called as the brackets of another repetition have it.
    """
    found = list(records)
    names: dict[tuple[str, str], str] = {}
    for cell in (record.cell for record in found):
        method = plain_name(cell.method), canonical_json(cell.options)
        names[method] = max(names.get(method, ""), cell.method, key=lambda name: (len(name), name))
    return {r.key: names[plain_name(r.cell.method), canonical_json(r.cell.options)] for r in found}


def parts_of(name: str) -> tuple[Part, ...]:
    """The parts of a method's name; one that is no such name is a part by itself."""
    try:
        return parse_name(name)
    except UsageError:
        return (Part(name),)


def label_variants(names: Sequence[str], options: Sequence[str]) -> list[str]:
    """Names; where one name has several sets of options (as JSON), followed by what differs."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for name, text in zip(names, options, strict=True):
        variants.setdefault(name, {}).setdefault(text, _flatten(json.loads(text)))
    return [_label(name, variants[name], text) for name, text in zip(names, options, strict=True)]


def _label(name: str, variants: Mapping[str, Mapping[str, Any]], text: str) -> str:
    own, flat = variants[text], list(variants.values())
    if len(flat) == 1:
        return name
    if len({variant.get("preset") for variant in flat}) == len(flat):
        return f"{name} [{own.get('preset')}]"
    options = sorted({option for variant in flat for option in variant})
    # An option that is None is not one that the plugin did not have yet.
    differing = [o for o in options if len({canonical_json(v[o]) if o in v else "" for v in flat}) > 1]
    shown = ", ".join(f"{option.rpartition('.')[2]}={own.get(option, 'absent')}" for option in differing)
    return f"{name} [{shown}]"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items = (_flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items())
    return {name: leaf for part in items for name, leaf in part.items()}
