"""What commands cost before and beside measuring: python tests/perf/startup.py [CELLS], two minutes on one core.

Stores a sweep of 2,000 cells of the embedded suite with numbers that are made up, then times in processes of their own
`list methods`, `plan` of the same cells with and without what an earlier one remembers, `merge` and `tables`, which
draws figures as well: the least time of some repetitions counts. A part of `nox -s perf`, `--only startup` there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.identity.names import split_names
from harness.plan.plan import Request, make_plan
from harness.results.provenance import collect
from harness.results.record import Layer, Quantization, Record, Stage
from harness.results.store import Store

ROOT = Path(__file__).resolve().parents[2]
CELLS, REPEATS = 2000, 3
IMAGES, LAYERS, SITES = 2000, 26, 61  # as those of the embedded suite
SWEEP = "{noise,psaq,real,fdd}+{minmax,omse,percentile,ema,repq}"
BITS = ("W8A8", "W6A6", "W4A8", "W4A4", "W3A3")


def stored(store: Store, cells: int) -> list[str]:
    """Fill the store with about `cells` cells; returns the arguments of the commands that ask for them."""
    catalog = Catalog.default()
    methods = tuple(split_names(SWEEP))
    per_seed = 2 * len(methods) * len(BITS)
    seeds = max(1, cells // per_seed)
    request = Request(methods=methods, bits=BITS, seeds=seeds, references=False)
    for planned in make_plan(request, catalog, store).cells:
        outcomes = _outcomes(planned.cell)
        store.save(_record(planned.cell, catalog, outcomes), outcomes)
    return ["--methods", SWEEP, "--bits", ",".join(BITS), "--seeds", str(seeds), "--limit", "all", "--no-references"]


def _outcomes(cell: Cell) -> pd.DataFrame:
    """Images right with a chance of their own that a cell shifts a little, as those of quantized copies of a model."""
    seed = int.from_bytes(hashlib.sha256(cell.key.encode()).digest()[:4], "big")
    shared, own = np.random.default_rng(0).random(IMAGES), np.random.default_rng(seed).random(IMAGES)
    label = np.arange(IMAGES) % 10
    right = 0.9 * shared + 0.1 * own < 0.8 + 0.02 * int(cell.bits[1] if cell.bits[0] == "W" else 8) - 0.1
    prediction = np.where(right, label, (label + 1) % 10)
    return pd.DataFrame({"label": label, "prediction": prediction, "correct": right})


def _record(cell: Cell, catalog: Catalog, outcomes: pd.DataFrame) -> Record:
    quantization = Quantization(
        weight_sites=LAYERS,
        activation_sites=SITES,
        weight_mib=1.21,
        float_values=4000,
        layers=[Layer(name=f"blocks.{i}.mlp.fc1.weight", size=36864, bits=8) for i in range(LAYERS)],
        activation_ranges={f"blocks.{i}/linear.0:in0": (-1.234567, 2.345678) for i in range(SITES)},
        activation_bits={f"blocks.{i}/linear.0:in0": 8 for i in range(SITES)},
        bit_operations=10**9,
    )
    method = catalog.restore(cell.method, cell.options)
    return Record(
        key=cell.key,
        cell=cell,
        status="ok",
        primary_metric="top1",
        metrics={"top1": 100 * float(outcomes["correct"].mean())},
        stages={name: Stage(seconds=1.25) for name in ("load", "synthesize", "calibrate", "check", "evaluate")},
        seconds=30.0,
        peak_memory_mib=812.4,
        added_memory_mib=12.4,
        quantization=None if cell.is_float else quantization,
        data=method.data,
        origin=method.origin,
        trains=method.trains,
        provenance=collect(code_for(catalog, cell), "cpu", 1),
        started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:00:30Z",
    )


def seconds(arguments: list[str], folder: Path, cache: Path, repeats: int = REPEATS) -> tuple[float, float]:
    """Least wall and CPU time of a command, in seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DFQBENCH_CACHE": str(cache)}
    found = []
    for _ in range(repeats):
        before, started = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "harness", *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        wall, after = time.perf_counter() - started, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        found.append((wall, cpu))
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def measured(cells: int = CELLS) -> Iterator[tuple[str, float, float]]:
    """Every command with its least wall and CPU time, in seconds, as soon as it is known."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "cells").mkdir()
        run = stored(Store(folder / "cells"), cells)
        number = len(list((folder / "cells").glob("*.json")))
        yield "list methods", *seconds(["list", "methods"], folder, folder / "cache")
        # What a plan has found of outcomes is remembered; the first one of a folder that was copied has to look.
        plan = ["plan", *run, "--out", "cells"]
        found = [seconds(plan, folder, folder / f"cache{i}", 1) for i in range(REPEATS)]
        yield f"first plan, {number:,} cells", *(min(values) for values in zip(*found, strict=True))
        yield f"plan, {number:,} cells", *seconds(plan, folder, folder / "cache0")
        yield f"merge, {number:,} cells", *seconds(["merge", "cells", "--into", "merged"], folder, folder / "cache0")
        yield f"tables, {number:,} cells", *seconds(["tables", "--out", "cells"], folder, folder / "cache0", 1)


def main() -> None:
    """Print a line per command."""
    for name, wall, cpu in measured(int(sys.argv[1]) if len(sys.argv) > 1 else CELLS):
        sys.stdout.write(f"{name:26} {wall:8.2f} s wall {cpu:8.2f} s CPU\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
