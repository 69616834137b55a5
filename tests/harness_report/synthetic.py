"""Records that look like a sweep, without running one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.identity.cell import FLOAT, FLOAT_BITS, FLOAT_SCHEME, Cell
from harness.results.record import Failure, Provenance, Quantization, Record, Stage
from harness.results.store import Store

IMAGES = 400
MODELS = ("vit_a", "swin_b")
# method -> accuracy lost at W8A8, factor 6 at W4A4
LOSSES = {"noise+minmax": 4.0, "psaq+minmax": 1.5, "clamp": 1.0, "real+minmax": 0.6}
PROVENANCE = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)


def record(method: str, seed: int = 0, *, bits: str = "W8A8", model: str = "vit_a", **changes: Any) -> Record:
    cell_changes = {name: changes.pop(name) for name in list(changes) if name in Cell.model_fields}
    fields: dict[str, Any] = {
        "suite": "embedded",
        "task": "classification",
        "model": model,
        "weights": f"weights of {model}",
        "data": "d" * 64,
        "limit": IMAGES,
        "method": method,
        "options": {"preset": "quick", "parts": {f"method:{method}": {"steps": 10}}},
        "bits": bits,
        "scheme": "full",
        "seed": seed,
    }
    if method == FLOAT:
        fields |= {"bits": FLOAT_BITS, "scheme": FLOAT_SCHEME, "options": {}}
    cell = Cell(**{**fields, **cell_changes})
    quantization = Quantization(
        weight_sites=26, activation_sites=61, weight_mib=1.21, float_values=9, layers=[], activation_ranges={}
    )
    values: dict[str, Any] = {
        "key": cell.key,
        "cell": cell,
        "status": "ok",
        "primary_metric": "top1",
        "metrics": {"top1": 0.0},
        "stages": {"synthesize": Stage(seconds=20.5, cached=seed == 1), "calibrate": Stage(seconds=1.25)}
        | ({"refresh": Stage(seconds=812.5), "search": Stage(seconds=1812.5)} if method == "clamp" else {}),
        "seconds": 30.0,
        "peak_memory_mib": 812.4,
        "quantization": None if method == FLOAT else quantization,
        "data": "images" if method.startswith("real") else "none",
        "origin": "reconstruction" if method == "clamp" else "baseline",
        "provenance": PROVENANCE,
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:00:30Z",
    }
    return Record(**{**values, **changes})


def failed(method: str, seed: int, **changes: Any) -> Record:
    failure = Failure(type="ValueError", message="patches do not | fit\nsecond line", traceback="Traceback ...")
    return record(method, seed, status="failed", failure=failure, metrics={}, quantization=None, **changes)


def outcome(accuracy: float, seed: int, images: int = IMAGES) -> np.ndarray:
    """Outcomes that share most of their errors, as those of quantized copies of one model do."""
    shared = np.random.default_rng(0).random(images)
    own = np.random.default_rng(seed + int(1000 * accuracy)).random(images)
    return 0.9 * shared + 0.1 * own < accuracy / 100


# How many times a method's loss at W8A8 others are.
FACTORS = {"W8A8": 1, "W4A8": 3, "W6A6": 2, "W4A4": 6, "W3A3": 12, "MP4.5": 4, "MP6.5": 2}
FACTORS |= dict.fromkeys(("MXFP4A8", "MXFP8A8", "MXFP8E5M2A8"), 4)


def fill(store: Store, models: Sequence[str] = MODELS, seeds: int = 3, bits: Sequence[str] = ("W8A8", "W4A4")) -> None:
    """Save a sweep: float, floor, two methods and ceiling."""
    for place, model in enumerate(models):
        top = 91.0 - place
        save(store, record(FLOAT, model=model), outcome(top, 0))
        for width in bits:
            factor = FACTORS[width]
            for method, loss in LOSSES.items():
                for seed in range(seeds):
                    right = outcome(top - loss * factor, seed + 1)
                    save(store, record(method, seed, bits=width, model=model), right, images=picture(method))


def save(
    store: Store, cell_record: Record, right: np.ndarray, images: np.ndarray | None = None, **sidecars: Any
) -> Record:
    """Save a record with the metric that its outcomes give; returns it as it was saved."""
    measured = cell_record.model_copy(update={"metrics": {"top1": 100 * float(right.mean())}})
    return store.save(measured, pd.DataFrame({"correct": right}), images, **sidecars)


def picture(method: str) -> np.ndarray:
    """Ten grey images, different for every image source."""
    generator = np.random.default_rng(sum(map(ord, method)))
    coarse = generator.integers(0, 256, size=(10, 8, 8, 1), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
