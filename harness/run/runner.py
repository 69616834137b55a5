"""Measures one cell in this process. Knows nothing of plans, stores and workers."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.contracts import QuantizedModel, Skips, Suite, VisionModel
from harness.api.errors import BadResult, UsageError
from harness.api.images import check_images
from harness.api.sealing import sealed_data
from harness.api.spec import BitSpec, split_scheme
from harness.catalog.catalog import Catalog, ResolvedMethod
from harness.catalog.code import code_for, code_of_infos, is_builtin
from harness.catalog.requirements import Requirements, unsuited
from harness.identity.cell import Cell
from harness.plan.plan import as_evaluated, calibration_identity
from harness.results.provenance import collect
from harness.results.record import Failure, Quantization, Record
from harness.results.verify import contradiction, flaw
from harness.run.allocator import keep_freed_memory
from harness.run.checks import (
    Evaluated,
    Inspected,
    Known,
    check_handed_over,
    check_metrics,
    check_untouched,
    summarise,
)
from harness.run.clock import Clock
from harness.run.context import Context, seed_everything
from harness.run.notices import noticed
from harness.run.process import ProcessState, exits_raised
from harness.run.unchanged import Snapshot

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

Progress = Callable[[str, float], None]
# Takes what a cell's number was measured with, which else is gone: suite, float model, quantized model.
Keep = Callable[[Suite, VisionModel, QuantizedModel], None]


@dataclass(frozen=True)
class Settings:
    """What a run is given that does not change its numbers."""

    catalog: Catalog
    device: str  # auto, cpu or cuda
    threads: int
    cache: Path
    data_root: Path | None = None
    requested: Mapping[str, str] = field(default_factory=dict)  # canonical model name -> the user's, where they differ
    trust_configs: bool = False  # configs of models may run code
    skips: Mapping[str, str] = field(default_factory=dict)  # key -> why the cell makes no sense, known when planned
    results: Path | None = None  # folder of the records, for executors whose hosts write them


@dataclass(frozen=True)
class Measured:
    """A record with its sidecars."""

    record: Record
    outcomes: pd.DataFrame | None = None
    images: np.ndarray | None = None
    snapshots: Mapping[int, np.ndarray] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: bool = False  # whoever measured it has put it into the results folder


def now() -> str:
    """The present time as it is written to records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def failed_record(settings: Settings, cell: Cell, failure: Failure, started: str, seconds: float) -> Record:
    """The record of a cell that gave no number."""
    method = settings.catalog.restore(cell.method, cell.options)
    return Record(
        key=cell.key,
        cell=cell,
        status="failed",
        failure=failure,
        data=method.data,
        origin=method.origin,
        trains=method.trains,
        seconds=seconds,
        provenance=collect(code_for(settings.catalog, cell), settings.device, settings.threads),
        started=started,
        finished=now(),
    )


@dataclass(frozen=True)
class _Intact:
    """The float model as it was loaded, with `part` of it to be quantized, and the process as it was then."""

    part: str | None
    net: Snapshot
    process: ProcessState
    modules: int  # that were imported then
    known: Known


class CellRunner:
    """Measures cells one after the other; keeps suites and the last float model between them.

    What a cell leaves behind is undone as far as can be from inside a process: the float model is made anew after
    foreign code and failures, torch's switches, the environment and replaced functions are put back. Threads that still
    run, patched packages other than torch, timm and this project, and what hides in C are left to whoever replaces the
    process (`harness.run.executors.worker.WorkerProcess`).
    """

    def __init__(self, settings: Settings) -> None:
        # Read by cuBLAS when CUDA starts; without it matrix products on CUDA are not repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        keep_freed_memory()
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # float32 means float32: TensorFloat-32 would give other numbers on other GPUs.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._settings = settings
        self._device = resolve_device(settings.device)
        self._suites: dict[tuple[str, str], Suite] = {}
        self._loaded: tuple[Any, VisionModel, Requirements] | None = None
        self._intact: _Intact | None = None
        self._process: ProcessState | None = None

    def measure(self, cell: Cell, progress: Progress, keep: Keep | None = None) -> Measured:
        """Measure `cell`; whatever goes wrong becomes a failed record. `keep` is given the quantized model of one that
        went well.
        """
        from torch.utils import deterministic

        started, clock = now(), Clock()
        self._process = None
        # Memory that nothing was written to is NaN for foreign code, which may read it and get another number in every
        # run. The project's own is tested so, and need not pay for it: up to a tenth of an evaluation.
        foreign = not is_builtin(self._settings.catalog, cell)
        deterministic.fill_uninitialized_memory = foreign  # type: ignore[attr-defined]  # made by a class of its own
        with noticed() as log, exits_raised():
            try:
                measured = self._measure(cell, progress, started, clock, keep)
            except BaseException as error:  # the code of a cell may raise anything, and ask for the end
                self._loaded = None  # what raised may have left the float model changed
                measured = Measured(failed_record(self._settings, cell, _failure(error), started, clock.seconds))
            finally:
                if self._process is not None:
                    self._process.restore()
        if foreign:
            self._loaded = None
        return replace(measured, record=measured.record.model_copy(update={"warnings": log.notices}))

    def _measure(
        self, cell: Cell, progress: Progress, started: str, clock: Clock, keep: Keep | None = None
    ) -> Measured:
        catalog = self._settings.catalog
        method = catalog.restore(cell.method, cell.options)
        code = code_for(catalog, cell)
        ctx = Context(
            cell,
            cache=self._settings.cache,
            code=code,
            code_of=partial(code_of_infos, catalog.tasks.get(cell.task)),
            device=self._device,
            threads=self._settings.threads,
            report=progress,
            clock=clock,
        )
        suite = self._suite(cell)
        common: dict[str, Any] = {"key": cell.key, "cell": cell, "data": method.data, "origin": method.origin}
        common |= {"trains": method.trains, "primary_metric": suite.primary_metric, "started": started}
        common["provenance"] = collect(code, str(self._device), self._settings.threads)

        def skipped(reason: str) -> Measured:
            return Measured(Record(**common, status="skipped", reason=reason, seconds=clock.seconds, finished=now()))

        if cell.key in self._settings.skips:
            return skipped(self._settings.skips[cell.key])
        progress("load", 0.0)
        with ctx.stage("load"):
            model = self._float_model(suite, cell)
        if not cell.is_float:
            model = model.restricted(split_scheme(cell.scheme)[1])
        common["preprocessing"] = dict(model.preprocessing)
        seed_everything(ctx.seed("global"))
        ctx.restart_memory()
        quantization = None
        peak = None
        outcome: QuantizedModel | str = ""
        if cell.is_float:
            forward = Evaluated(model, model.net, f"model '{model.name}'")
        else:
            outcome = self._quantize(cell, method, suite, model, ctx)
            if isinstance(outcome, str):
                return skipped(outcome)
            peak = ctx.memory.peak_mib, ctx.memory.added_mib
            with ctx.stage("check"):
                forward, quantization = self._inspect(cell, method, model, outcome, ctx)
        progress("evaluate", 1.0)
        import torch

        evaluated = as_evaluated(suite, cell.corruption)
        with ctx.stage("evaluate"), torch.no_grad():
            evaluation = evaluated.evaluate(model, forward, cell.limit)
        with ctx.stage("check"):
            forward.check_unchanged()
            self._check_process(method.name)
        peak = peak or (ctx.memory.peak_mib, ctx.memory.added_mib)
        metrics = {name: float(value) for name, value in evaluation.metrics.items()}
        check_metrics(metrics, suite.primary_metric)
        record = Record(
            **common,
            status="ok",
            metrics=metrics,
            counters=dict(ctx.counters),
            stages=ctx.stages,
            diagnostics=ctx.kept_diagnostics,
            seconds=clock.seconds,
            peak_memory_mib=peak[0],
            added_memory_mib=peak[1],
            quantization=quantization,
            images_from=ctx.images_from,
            unverified=forward.unverified,
            finished=now(),
        )
        # What no command would believe later is not kept as a result now.
        wrong = flaw(record) or contradiction(record, evaluation.outcomes, catalog.tasks.get(cell.task).resampling)
        if wrong is not None:
            raise BadResult(f"the suite's evaluation {wrong}")
        if keep is not None and not isinstance(outcome, str):
            keep(evaluated, model, outcome)
        images, snapshots = ctx.kept_images(model), ctx.kept_snapshots(model)
        return Measured(record, evaluation.outcomes, images, snapshots, evaluation.pictures)

    def _quantize(
        self, cell: Cell, method: ResolvedMethod, suite: Suite, model: VisionModel, ctx: Context
    ) -> QuantizedModel | str:
        """The quantized model, or the reason why the method skips this combination."""
        spec = BitSpec.parse(cell.bits)
        reason = unsuited(method, spec, cell.scheme)
        if reason is not None:
            return reason
        tensors, part = split_scheme(cell.scheme)
        assert self._loaded is not None
        lacking = self._loaded[2].unmet(method.requires, cell.scheme)
        if lacking is not None:
            return lacking
        with ctx.stage("check"):
            intact = self._intact
            if intact is None or (intact.part, intact.modules) != (part, len(sys.modules)):
                known = intact.known if intact is not None and intact.part == part else Known()
                process = ProcessState(type(module) for module in model.net.modules())
                intact = _Intact(part, Snapshot(model.net), process, len(sys.modules), known)
            self._intact, self._process = intact, intact.process
        free = method.data == "none"
        if cell.calibration and calibration_identity(suite) != cell.calibration:
            raise UsageError(f"suite '{cell.suite}' has other training images now than when the run was planned")
        calib = None if free else suite.calibration(model)
        with sealed_data(method.name) if free else nullcontext():
            built = method.build()
            reason = built.skip(model, spec=spec, scheme=tensors) if isinstance(built, Skips) else None
            if reason is not None:
                return reason
            with ctx.stage("other"):
                return built.quantize(model, spec=spec, scheme=tensors, calib=calib, ctx=ctx)

    def _inspect(
        self, cell: Cell, method: ResolvedMethod, model: VisionModel, quantized: QuantizedModel, ctx: Context
    ) -> tuple[Inspected, Quantization]:
        """What a method left behind and handed back, checked: its model as it is evaluated, and what it quantized."""
        assert self._intact is not None
        check_untouched(method.name, self._intact.net.change(Snapshot(model.net)))
        self._check_process(method.name)
        if ctx.kept is not None:
            check_images(ctx.kept, model, f"method '{method.name}'")
        quantization = summarise(method.name, quantized.summary)
        spec, (tensors, _) = BitSpec.parse(cell.bits), split_scheme(cell.scheme)
        known = self._intact.known
        inspected = Inspected(
            model, quantized, method.name, scheme=tensors, spec=spec, leave_out=(Context,), known=known
        )
        return inspected, quantization

    def _check_process(self, name: str) -> None:
        """Put back what a method changed in this process; it could have changed other methods' numbers, and its own."""
        if self._process is None:  # the float reference: no method ran
            return
        moved, replaced = self._process.restore()
        if replaced:
            raise BadResult(f"method '{name}' replaced {replaced[0]}, which other methods and models use")
        if moved:
            warnings.warn(f"method '{name}' changed {', '.join(moved)} for the whole process; put back", stacklevel=2)

    def _suite(self, cell: Cell) -> Suite:
        key = cell.task, cell.suite
        if key not in self._suites:
            task = self._settings.catalog.tasks.get(cell.task)
            trusted = self._settings.trust_configs
            opened = task.open_suite(cell.suite, self._settings.data_root, trust_configs=trusted)
            if opened.data_identity() != cell.data:
                raise UsageError(
                    f"suite '{cell.suite}' has other data now than when the run was planned; run the command again"
                )
            self._suites[key] = opened
        return self._suites[key]

    def _float_model(self, suite: Suite, cell: Cell) -> VisionModel:
        key = cell.task, cell.suite, cell.model, cell.weights
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = self._intact = None  # free the old one before the new one is loaded
            requested = self._settings.requested.get(cell.model, cell.model)
            loaded = suite.load(requested, self._device)
            check_handed_over(loaded, cell.task)
            if suite.model_identity(requested) != cell.weights:
                raise UsageError(
                    f"model '{requested}' has other weights now than when the run was planned; run the command again"
                )
            model = replace(loaded, name=cell.model)
            self._loaded = key, model, Requirements(model)
        return self._loaded[1]


def _failure(error: BaseException) -> Failure:
    message = str(error)
    if not isinstance(error, Exception):
        message = f"the code of the cell asked for the end of the program{message and ': ' + message}"
    return Failure(type=type(error).__name__, message=message, traceback=traceback.format_exc())


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
