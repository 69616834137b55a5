"""How a results folder of many records behaves: `python tests/perf/big_store.py [--records 10000,100000] [--only ...]`.

Makes folders of records that are valid and no measurements, and does with each what commands do, in a process of its
own. It prints CPU seconds, the peak of memory, and by which power of the number of records both grow from one folder
to the next. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from harness.api.errors import UsageError
from harness.api.plugins import TaskInfo
from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.catalog.registry import Registry
from harness.identity.cell import Cell
from harness.plan.outcome import exit_code
from harness.plan.plan import Plan, Request, make_plan
from harness.results import sidecars
from harness.results.provenance import collect
from harness.results.record import ImagesFrom, Layer, Quantization, Record, Sidecar, Stage
from harness.results.store import Store
from harness.run.memory import MemoryMeter

IMAGES = 2000
TABLES = 97  # different outcomes; records share them
SOURCES = ("real", "noise", "psaq", "clamp", "sardfq", "fdd", "mimiq")
CALIBRATORS = (
    *("minmax", "ema", "percentile", "omse", "fqvit", "evolq", "noisyquant", "baseptq", "ptq4vit", "repq", "erq"),
    "adalog",
)
METHODS = tuple(f"{source}+{calibrator}" for source in SOURCES for calibrator in CALIBRATORS)
BITS = ("W8A8", "W6A6", "W4A8", "W4A4", "W3A3")
SCHEMES = ("full", "matmul")
SEEDS = 3
PER_MODEL = 1 + len(METHODS) * len(BITS) * len(SCHEMES) * SEEDS

TASK = TaskInfo(
    name="classification", summary="many models", suites={"many": "as many as wanted"}, target="big_store:open_suite"
)


class Suite:
    """Has any number of models, which exist by name only."""

    name, task, primary_metric = "many", "classification", "top1"

    def models(self) -> list[str]:
        """None by default."""
        return []

    def model_identity(self, model: str) -> str:
        """Weights of any model whose name begins like one of ours."""
        if not model.startswith("model"):
            raise UsageError(f"unknown model '{model}'")
        return f"{model}-weights"

    def canonical_name(self, model: str) -> str:
        """The name itself."""
        return model

    def check_limit(self, limit: int | None) -> None:
        """Any will do."""

    def data_identity(self) -> str:
        """Of no data."""
        return "d" * 16


def open_suite(*_: object, **__: object) -> Suite:
    """What a plan is made with."""
    return Suite()


def catalog() -> Catalog:
    """The project's own methods, and the suite of many models."""
    tasks = Registry("task", {"classification": "big_store:TASK"}, "big_store.none", TaskInfo)
    return replace(Catalog.default(), tasks=tasks)


def request(records: int) -> Request:
    """All methods at all precisions on so many models that there are about as many cells."""
    models = tuple(f"model{number:04}" for number in range(max(1, round(records / PER_MODEL))))
    bits, schemes = BITS, SCHEMES
    return Request(METHODS, models, bits, schemes, suite="many", seeds=SEEDS, references=False)


def plan_of(store: Store) -> Plan:
    """The plan of the records that the folder was made with, where it lies."""
    return make_plan(request(json.loads((store.folder / "about.txt").read_text())), catalog(), store)


# --- making ---------------------------------------------------------------------------------------------------------


def fill(folder: Path, records: int) -> int:
    """Write the records of all cells of the `request`; returns how many there are. Files are not flushed."""
    folder.mkdir(parents=True)
    (folder / "about.txt").write_text(json.dumps(records))
    tables, pictures = list(_tables()), list(_pictures())
    plan = plan_of(Store(folder))
    for number, planned in enumerate(plan.cells):
        cell = planned.cell
        content, outcomes, accuracy = tables[number % TABLES]
        image, images = pictures[number % len(pictures)]
        (folder / f"{cell.key}.parquet").write_bytes(content)
        said = {sidecars.OUTCOMES: outcomes}
        if not cell.is_float:
            (folder / f"{cell.key}.images.npz").write_bytes(image)
            said[sidecars.IMAGES] = images
        record = _record(cell, number, accuracy, said)
        (folder / f"{cell.key}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return len(plan.cells)


def _tables() -> Iterator[tuple[bytes, Sidecar, float]]:
    """Outcomes as bytes, what records say of them, and the accuracy that they give."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 1000, IMAGES)
    shared = generator.random(IMAGES)
    for number in range(TABLES):
        correct = 0.9 * shared + 0.1 * generator.random(IMAGES) < 0.3 + 0.6 * number / TABLES
        frame = pd.DataFrame({"label": label, "prediction": np.where(correct, label, label + 1), "correct": correct})
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        shapes = {name: frame[name].shape for name in frame}
        yield content.getvalue(), sidecars.described(content.getvalue(), shapes), 100 * float(correct.mean())


def _pictures() -> Iterator[tuple[bytes, Sidecar]]:
    generator = np.random.default_rng(1)
    for _ in range(5):
        images = generator.integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
        content = io.BytesIO()
        np.savez_compressed(content, images=images)
        yield content.getvalue(), sidecars.described(content.getvalue(), {"images": images.shape})


@cache
def _template(method: str, options: str) -> Record:
    """A record of the method, with a quantized ViT-B's layers and sites."""
    cell = Cell(
        **{"suite": "many", "task": "classification", "model": "model", "weights": "", "data": "d" * 16},
        **{"limit": None, "method": method, "options": json.loads(options), "bits": "", "scheme": "", "seed": 0},
    )
    code = code_for(catalog(), cell)
    resolved = catalog().restore(method, cell.options)
    provenance = collect(code, "cpu", 1)
    images_from = ImagesFrom(code=code.fingerprint, versions=dict(code.versions), threads=1, processor={}, variables={})
    return Record(
        **{"key": cell.key, "cell": cell, "status": "ok", "primary_metric": "top1", "metrics": {"top1": 0.0}},
        **{"data": resolved.data, "origin": resolved.origin, "trains": resolved.trains, "images_from": images_from},
        **{"counters": {"images": 32, "steps": 500}, "peak_memory_mib": 1292.5, "added_memory_mib": 12.25},
        **{"provenance": provenance, "warnings": [], "started": "2026-11-29T01:12:27+00:00"},
        finished="2026-11-29T01:13:07+00:00",
    )


def _record(cell: Cell, number: int, accuracy: float, said: Mapping[str, Sidecar]) -> Record:
    template = _template(cell.method, json.dumps(cell.options))
    seconds = 1.0 + number % 100 / 7
    changes = {
        "key": cell.key,
        "cell": cell,
        "metrics": {"top1": accuracy},
        "sidecars": dict(said),
        "stages": {
            name: Stage(seconds=seconds * share, cached=name == "synthesize")
            for name, share in (("load", 0.01), ("synthesize", 0.4), ("other", 0.01), ("calibrate", 0.5))
        },
        "seconds": seconds,
        "quantization": None if cell.is_float else _quantization(cell.bits, number % TABLES),
    }
    return template.model_copy(update=changes)


@cache
def _quantization(bits: str, number: int) -> Quantization:
    weights, activations = int(bits[1]), int(bits[3])
    layers = [f"blocks.{block}.{name}.weight" for block in range(12) for name in ("qkv", "proj", "fc1", "fc2")]
    sites = [f"blocks.{block}.{name}:in0" for block in range(12) for name in ("a", "b", "c", "d", "e", "f", "g", "h")]
    own = np.random.default_rng(number).normal(size=(len(sites), 2)).round(6)
    return Quantization(
        weight_sites=len(layers),
        activation_sites=len(sites),
        weight_mib=41.25 * weights,
        float_values=18826,
        layers=[Layer(name=name, size=589824, bits=weights) for name in layers],
        activation_ranges={
            site: (-4.0 + low, 4.0 + high) for site, (low, high) in zip(sites, own.tolist(), strict=True)
        },
        activation_bits=dict.fromkeys(sites, activations),
        bit_operations=17_000_000_000 * weights * activations,
    )


# --- doing ----------------------------------------------------------------------------------------------------------

Step = Callable[[Path], object]


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=140)


def _records(folder: Path) -> None:
    assert list(Store(folder).records())


def _plan_new(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as empty:
        shutil.copy(folder / "about.txt", empty)
        assert plan_of(Store(Path(empty))).todo


def _plan(folder: Path) -> None:
    plan = plan_of(store := Store(folder))
    assert not plan.todo, plan.todo[0]
    assert not store.problems


def _show(folder: Path) -> None:
    from harness.run.display import show_plan

    show_plan(plan_of(Store(folder)), _quiet())


def _outcome(folder: Path) -> None:
    plan = plan_of(store := Store(folder))
    assert exit_code(plan, store.records()) == 0


def _load(folder: Path) -> None:
    from harness.report.results import load

    assert len(load(Store(folder), catalog()).cells)


def _tables_alone(folder: Path) -> None:
    from harness.report import _write_tables
    from harness.report.results import load

    with tempfile.TemporaryDirectory() as report:
        _write_tables(load(Store(folder), catalog()), Path(report))


def _report(folder: Path) -> None:
    from harness.report import write_report

    with tempfile.TemporaryDirectory() as report:
        write_report(Store(folder), Path(report), None, _quiet(), catalog())


def _merge(folder: Path) -> None:
    """Into a folder that has the same records already, under other files."""
    from harness.results.merge import merge, show

    done = merge([folder], other := folder.with_name(f"{folder.name}-copy"))
    assert done.copied + done.better == 0
    assert show(done, other, _quiet()) == 0


def _merge_new(folder: Path) -> None:
    """Into an empty folder, which flushes every file."""
    from harness.results.merge import merge

    with tempfile.TemporaryDirectory(dir=folder.parent) as into:
        assert merge([folder], Path(into)).copied


STEPS: Mapping[str, Step] = {
    "records": _records,
    "plan-new": _plan_new,
    "plan": _plan,
    "plan-again": _show,  # what the first one has found is remembered
    "outcome": _outcome,
    "load": _load,
    "tables": _tables_alone,
    "report": _report,
    "merge": _merge,
    "merge-new": _merge_new,
}


def _child(connection: Connection, name: str, folder: Path) -> None:
    meter = MemoryMeter("cpu")
    began = time.process_time()  # other processes may keep the machine busy
    STEPS[name](folder)
    connection.send((time.process_time() - began, meter.peak_mib))


def measured(name: str, folder: Path) -> tuple[float, float] | None:
    """CPU seconds and peak MiB of a step in a process of its own; None if it did not end well."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, name, folder))
    process.start()
    theirs.close()
    try:
        found: tuple[float, float] = ours.recv()
    except EOFError:
        return None
    process.join()
    return found


def _power(values: list[float], counts: list[int]) -> str:
    return f"{math.log(values[-1] / values[0]) / math.log(counts[-1] / counts[0]):.2f}"


def main() -> None:
    """Parse arguments, make folders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", default="10000,100000", help="about how many each folder has, by comma")
    parser.add_argument("--only", default=",".join(STEPS), help="steps, by comma")
    parser.add_argument("--folder", type=Path, help="keep the records here, and use those that are there")
    arguments = parser.parse_args()
    sizes, names = [int(size) for size in arguments.records.split(",")], arguments.only.split(",")
    console, counts = Console(width=120), []
    found: dict[str, list[tuple[float, float] | None]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        parent = arguments.folder or Path(temporary)
        os.environ["DFQBENCH_CACHE"] = str(Path(temporary, "cache"))
        for size in sizes:
            folder = parent / str(size)
            if not folder.exists():
                began = time.perf_counter()
                fill(folder, size)
                console.print(f"{folder} made in {time.perf_counter() - began:.0f} s")
            counts.append(sum(path.suffix == ".json" for path in folder.iterdir()))
            if "merge" in names and not (other := folder.with_name(f"{size}-copy")).exists():
                shutil.copytree(folder, other)
            for name in names:
                found[name].append(last := measured(name, folder))
                text = "failed" if last is None else f"{last[0]:.1f} s, {last[1]:,.0f} MiB"
                console.print(f"{counts[-1]:,} records: {name} {text}")
    table = Table("step", *(f"{count:,}: s" for count in counts), *(f"{count:,}: MiB" for count in counts))
    table.add_column("power of s")
    table.add_column("of MiB")
    for name, results in found.items():
        numbers = [["–" if each is None else f"{each[i]:,.1f}" for each in results] for i in (0, 1)]
        known = None not in results and len(counts) > 1
        powers = [_power([each[i] for each in results], counts) if known else "–" for i in (0, 1)]  # type: ignore[index]
        table.add_row(name, *numbers[0], *numbers[1], *powers)
    console.print(table)


if __name__ == "__main__":
    sys.modules["big_store"] = sys.modules["__main__"]  # plugins are found by their module's name
    main()
