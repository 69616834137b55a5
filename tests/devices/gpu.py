"""What a GPU changes, in at most 8 minutes: `nox -s gpu`.

Part 1 measures one cell of every registered method on CUDA and on the CPU, and a second time on CUDA: accuracies may
differ by little between the two, and not at all between two runs on CUDA. Part 2 is the throughput on DeiT-S at 224 of
evaluation, synthesis, search and reconstruction. Both run cells as a sweep does, in worker processes. Each part has a
budget and stops when it is spent; what was done is printed as tables either way. Ends with 3 if a method failed or
differs, 4 if there is no GPU.

`--device cpu` is a rehearsal: the same on the CPU alone, with tiny networks and a few steps.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from device_cells import NAMES, SHORT, Where, cell_of  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tiny_options import TINY  # noqa: E402

from harness.catalog.catalog import Catalog  # noqa: E402
from harness.identity.cell import Cell  # noqa: E402
from harness.io.exit_codes import NOTHING_MEASURED, OK, SOME_FAILED  # noqa: E402
from harness.results.store import Store  # noqa: E402
from harness.run.executors.worker import WorkerProcess  # noqa: E402
from harness.run.runner import Measured, Settings  # noqa: E402

# Seconds after which a part begins no cell; with a last cell of each that takes as long as it may, 8 minutes in all.
BUDGET = {"methods": 210.0, "throughput": 120.0}
SHORTEST_CELL, LONGEST_CELL = 1.0, 60.0  # seconds: with less time left none is begun, and what takes longer has failed
# W8A8 of a trained network hardly depends on how sums are rounded; what differs by more than this is another algorithm.
MOST_POINTS, LEAST_AGREEMENT = 2.0, 95.0
WARNED = "does not have a deterministic implementation"


class Clock:
    """Time left of a part; None: as long as it takes, which a rehearsal may."""

    def __init__(self, seconds: float | None) -> None:
        self.longest_cell = None if seconds is None else LONGEST_CELL
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; never negative."""
        return max(0.0, self._end - time.monotonic())


class Hosts:
    """Worker processes that measure cells; one is kept for each thread that asks."""

    def __init__(self, device: str, threads: int, cache: Path, clock: Clock, where: Where) -> None:
        self._settings = Settings(Catalog.default(), device, threads, cache, where.data_root)
        self._clock = clock
        self._own = threading.local()
        self._all: list[WorkerProcess] = []

    def measure(self, cell: Cell) -> Measured | None:
        """The result; None if there was no time left for it."""
        if self._clock.left < SHORTEST_CELL:
            return None
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = WorkerProcess(self._settings, self._clock.longest_cell)
            self._all.append(worker)
        return worker.measure(cell, lambda *_: None)

    def close(self) -> None:
        """Kill them."""
        for worker in self._all:
            worker.close()


@contextmanager
def hosts(*arguments: Any) -> Iterator[Hosts]:
    """Hosts that are closed at the end."""
    made = Hosts(*arguments)
    try:
        yield made
    finally:
        made.close()


# --- part 1: every method, here and there -------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A method's row. `verdict` is `same`, `close`, or what is wrong; empty if there was no time."""

    name: str
    verdict: str
    cpu: float | None = None
    device: float | None = None
    agreement: float | None = None  # images with the same prediction, in percent
    seconds: tuple[float, float] | None = None  # on the CPU, on the device
    warned: bool = False  # torch said that an operation is not repeatable

    @property
    def wrong(self) -> bool:
        """Whether somebody has to look."""
        return self.verdict not in ("", "same", "close", "skipped")


def compare_methods(
    names: Sequence[str], device: str, where: Where, *, budget: float | None, cores: int, folder: Path
) -> Iterator[Compared]:
    """One row for each method, as it is done; the CPU's numbers are measured beside the device's."""
    clock = Clock(budget)
    store = Store(folder / "results")
    cells = {name: cell_of(name, where, store) for name in names}
    # Images are not taken from a cache that another run filled: they are what is compared, too.
    caches = [folder / name for name in ("cache-cpu", "cache-first", "cache-second")]
    for cache in caches:
        cache.mkdir(parents=True)
    beside = max(1, min(len(names), cores - 2))
    with (
        hosts("cpu", 1, caches[0], clock, where) as there,
        hosts(device, max(1, min(4, cores)), caches[1], clock, where) as here,
        hosts(device, max(1, min(4, cores)), caches[2], clock, where) as again,
        ThreadPoolExecutor(beside) as pool,
    ):
        reference: dict[str, Future[Measured | None]] = {
            name: pool.submit(there.measure, cell) for name, cell in cells.items()
        }
        for name, cell in cells.items():
            first = here.measure(cell)
            second = None if first is None else again.measure(cell)
            yield compared(name, reference[name].result(), first, second)


def compared(name: str, cpu: Measured | None, first: Measured | None, second: Measured | None) -> Compared:
    """The row of a method from its results on the CPU and twice on the device."""
    if first is None or cpu is None:
        return Compared(name, "")
    for what, measured in (("on the device", first), ("on the CPU", cpu)):
        if measured.record.failure is not None:
            return Compared(name, f"failed {what}: {measured.record.failure.headline}")
        if measured.record.status == "skipped":
            return Compared(name, "skipped")
    assert cpu.outcomes is not None
    assert first.outcomes is not None
    metric = str(cpu.record.primary_metric)
    values = cpu.record.metrics[metric], first.record.metrics[metric]
    agreement = 100.0 * float((cpu.outcomes["prediction"] == first.outcomes["prediction"]).mean())
    warned = any(WARNED in notice.message for notice in first.record.warnings or ())
    verdict = "same" if agreement == 100.0 else "close"
    if abs(values[0] - values[1]) > MOST_POINTS or agreement < LEAST_AGREEMENT:
        verdict = "DIFFERS from the CPU"
    if second is not None and not (second.outcomes is not None and first.outcomes.equals(second.outcomes)):
        verdict = "NOT REPEATABLE on the device"
    return Compared(name, verdict, *values, agreement, (cpu.record.seconds, first.record.seconds), warned)


def methods_table(rows: Sequence[Compared], device: str) -> Table:
    """Part 1."""
    table = Table(title=f"Methods on {device} against the CPU", title_justify="left")
    for column in ("method", "CPU", device, "agree %", "s CPU", f"s {device}", "verdict"):
        table.add_column(column, justify="left" if column in ("method", "verdict") else "right", overflow="fold")
    for row in rows:
        verdict = (row.verdict or "no time") + (" (torch warns: not repeatable)" if row.warned else "")
        numbers = [row.cpu, row.device, row.agreement, *(row.seconds or (None, None))]
        table.add_row(row.name, *("" if value is None else f"{value:.2f}" for value in numbers), verdict)
    return table


# --- part 2: throughput --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A cell whose stage `stage` is timed; `amount` of a record says how many units it did, `whole` how many the
    preset `paper` has, for an estimate.
    """

    what: str
    method: str
    options: Mapping[str, Mapping[str, Any]]
    stage: str
    unit: str
    amount: Callable[[Measured], int]
    whole: int | None = None


def _images(measured: Measured) -> int:
    return 0 if measured.outcomes is None else len(measured.outcomes)


def _counted(name: str) -> Callable[[Measured], int]:
    return lambda measured: int(measured.record.counters.get(name, 0))


def cases(steps: int, images: int) -> list[Case]:
    """What is timed, the cheapest first."""
    search = {"passes": 1, "cycles": 1, "population": 5 if steps > 5 else 2}
    return [
        Case("evaluation, float", "float", {}, "evaluate", "images", _images, 50_000),
        Case("evaluation, W8A8", "noise+minmax", {"noise": {"images": images}}, "evaluate", "images", _images, 50_000),
        Case(
            f"synthesis, PSAQ-ViT, {images} images",
            "psaq+minmax",
            {"psaq": {"images": images, "rounds": 1, "steps": steps}},
            "synthesize",
            "steps",
            _counted("synthesis_steps"),
            1000,
        ),
        Case(
            f"search, PTQ4ViT, {images} images",
            "noise+ptq4vit",
            {"noise": {"images": images}},
            "calibrate",
            "candidates",
            _counted("candidates"),
        ),
        Case(
            f"reconstruction, QDrop, {images} images",
            "noise+qdrop",
            {"noise": {"images": images}, "qdrop": {"steps": steps, "batch": images}},
            "calibrate",
            "steps",
            _counted("reconstruction_steps"),
        ),
        Case(
            f"search, CLAMP-ViT, {images} images",
            "noise+clamp-search",
            {"noise": {"images": images}, "clamp-search": search},
            "search",
            "candidates",
            _counted("candidates"),
        ),
    ]


@dataclass(frozen=True)
class Timed:
    """A case's row; no seconds: `note` says why."""

    case: Case
    note: str
    seconds: float | None = None
    amount: int = 0
    peak_mib: float | None = None


def time_cases(
    device: str, where: Where, *, steps: int, images: int, budget: float | None, cores: int, folder: Path
) -> Iterator[Timed]:
    """One row for each case, as it is done."""
    clock = Clock(budget)
    store, cache = Store(folder / "results"), folder / "cache-throughput"
    cache.mkdir(parents=True, exist_ok=True)
    with hosts(device, cores, cache, clock, where) as here:
        for case in cases(steps, images):
            found = here.measure(cell_of(case.method, where, store, case.options))
            if found is None:
                yield Timed(case, "no time")
                continue
            record = found.record
            if record.failure is not None or case.stage not in record.stages:
                yield Timed(case, record.failure.headline if record.failure else f"no stage {case.stage}")
                continue
            seconds, amount = record.stages[case.stage].seconds, case.amount(found)
            yield Timed(case, "", seconds, amount, record.peak_memory_mib)


def throughput_table(rows: Sequence[Timed], title: str) -> Table:
    """Part 2."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "seconds", "done", "per second", "peak MiB", "whole, min"):
        table.add_column(column, justify="left" if column == "what" else "right", overflow="fold")
    for row in rows:
        if row.seconds is None or not row.amount:
            table.add_row(row.case.what, row.note or "nothing counted")
            continue
        rate = row.amount / row.seconds
        whole = "" if row.case.whole is None else f"{row.case.whole / rate / 60:.1f}"
        done, peak = f"{row.amount:,} {row.case.unit}", "" if row.peak_mib is None else f"{row.peak_mib:,.0f}"
        table.add_row(row.case.what, f"{row.seconds:.1f}", done, f"{rate:,.1f}", peak, whole)
    return table


def write_images(root: Path, classes: int, per_class: int, size: tuple[int, int]) -> None:
    """A folder of ImageNet's layout with random images, whose contents do not matter for times."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(root / "one.jpeg", quality=90)
    content = (root / "one.jpeg").read_bytes()
    (root / "one.jpeg").unlink()
    for number in range(classes):
        folder = root / "val" / f"n{number:08d}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            (folder / f"{index}.jpeg").write_bytes(content)


# --- both ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, tiny")
    parser.add_argument("--methods", help="some of them, by comma")
    parser.add_argument("--only", choices=list(BUDGET), help="one part")
    args = parser.parse_args(arguments)
    console = Console(width=140)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    dry = args.device == "cpu"
    if dry:
        where, model, steps, images, sizes = (
            Where("tiny", "vit", "W8A8", None, TINY),
            "test_vit",
            2,
            2,
            (3, 2, (64, 48)),
        )
        title = "rehearsal"
    else:
        import torch

        if not torch.cuda.is_available():
            console.print("torch sees no CUDA device here; --device cpu rehearses without one.", style="red")
            return NOTHING_MEASURED
        where, model = Where("embedded", "vit", "W8A8", 500, SHORT), "deit_small_patch16_224"
        steps, images, sizes = 20, 32, (1000, 2, (500, 375))
        title = torch.cuda.get_device_name()
    names = args.methods.split(",") if args.methods else list(NAMES)
    compared_rows: list[Compared] = []
    timed_rows: list[Timed] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)

        def shared(part: str) -> dict[str, Any]:
            return {"budget": None if dry else BUDGET[part], "cores": cores, "folder": folder}

        try:
            if args.only != "throughput":
                for row in compare_methods(names, args.device, where, **shared("methods")):
                    compared_rows.append(row)
                    console.print(f"{row.name}: {row.verdict or 'no time'}", markup=False, highlight=False)
            if args.only != "methods":
                (folder / "images").mkdir()
                write_images(folder / "images", *sizes)
                at = Where("imagenet", f"timm:{model}@random", "W8A8", None, {}, folder / "images")
                for timed in time_cases(args.device, at, steps=steps, images=images, **shared("throughput")):
                    timed_rows.append(timed)
                    console.print(f"{timed.case.what}: {timed.note or 'done'}", markup=False, highlight=False)
        finally:  # also when interrupted
            if compared_rows:
                console.print(methods_table(compared_rows, args.device))
            if timed_rows:
                console.print(throughput_table(timed_rows, f"{model} on {args.device} ({title}), {cores} cores"))
    wrong = any(row.wrong for row in compared_rows) or any(row.seconds is None for row in timed_rows)
    return SOME_FAILED if wrong else OK


if __name__ == "__main__":
    raise SystemExit(main())
