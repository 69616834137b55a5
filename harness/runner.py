"""Measures one cell in this process. Knows nothing of plans, stores and workers."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalog import Catalog, ResolvedMethod
from harness.cell import Cell
from harness.code import Code, code_of
from harness.context import Context, seed_everything
from harness.contracts import QuantSummary, Skips, Suite, VisionModel, sealed_data
from harness.errors import UsageError
from harness.notices import noticed
from harness.plugins import PluginInfo, TaskInfo
from harness.provenance import collect
from harness.record import Failure, Layer, Quantization, Record
from harness.requirements import Requirements
from harness.spec import BitSpec, split_scheme
from harness.verify import contradiction, flaw

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

Progress = Callable[[str, float], None]


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


@dataclass(frozen=True)
class Measured:
    """A record with its sidecars."""

    record: Record
    outcomes: pd.DataFrame | None = None
    images: np.ndarray | None = None
    snapshots: Mapping[int, np.ndarray] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


class BadResult(RuntimeError):
    """A method broke its contract, so that its number would mean nothing."""


def code_for(catalog: Catalog, cell: Cell) -> Code:
    """The code that a cell's number depends on, third-party plugins included."""
    return _code_of(catalog.tasks.get(cell.task), *catalog.restore(cell.method, cell.options).infos)


def _code_of(*infos: TaskInfo | PluginInfo) -> Code:
    packages = frozenset(package for info in infos for package in info.packages)
    return code_of(frozenset(info.target for info in infos), packages)


def calibration_identity(suite: Suite) -> str:
    """Revision of the suite's calibration data where that of all its data does not cover them, else empty.

    Raises:
        UsageError: there are none.
    """
    ask = getattr(suite, "calibration_identity", None)
    return "" if ask is None else str(ask())


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


class CellRunner:
    """Measures cells one after the other; keeps suites and the last float model between them."""

    def __init__(self, settings: Settings) -> None:
        # Read by cuBLAS when CUDA starts; without it matrix products on CUDA are not repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # float32 means float32: TensorFloat-32 would give other numbers on other GPUs.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._settings = settings
        self._device = resolve_device(settings.device)
        self._suites: dict[tuple[str, str], Suite] = {}
        self._loaded: tuple[Any, VisionModel, Requirements] | None = None

    def measure(self, cell: Cell, progress: Progress) -> Measured:
        """Measure `cell`; whatever goes wrong becomes a failed record."""
        started, clock = now(), time.perf_counter()
        with noticed() as log:
            try:
                measured = self._measure(cell, progress, started, clock)
            except Exception as error:  # a method or model may raise anything; the sweep goes on
                self._loaded = None  # what raised may have left the float model changed
                failure = Failure(type=type(error).__name__, message=str(error), traceback=traceback.format_exc())
                seconds = time.perf_counter() - clock
                measured = Measured(failed_record(self._settings, cell, failure, started, seconds))
        return replace(measured, record=measured.record.model_copy(update={"warnings": log.notices}))

    def _measure(self, cell: Cell, progress: Progress, started: str, clock: float) -> Measured:
        catalog = self._settings.catalog
        method = catalog.restore(cell.method, cell.options)
        code = code_for(catalog, cell)
        ctx = Context(
            cell,
            cache=self._settings.cache,
            code=code,
            code_of=partial(_code_of, catalog.tasks.get(cell.task)),
            device=self._device,
            threads=self._settings.threads,
            report=progress,
        )
        suite = self._suite(cell)
        common: dict[str, Any] = {"key": cell.key, "cell": cell, "data": method.data, "origin": method.origin}
        common |= {"trains": method.trains, "primary_metric": suite.primary_metric, "started": started}
        common["provenance"] = collect(code, str(self._device), self._settings.threads)

        def skipped(reason: str) -> Measured:
            seconds = time.perf_counter() - clock
            return Measured(Record(**common, status="skipped", reason=reason, seconds=seconds, finished=now()))

        if cell.key in self._settings.skips:
            return skipped(self._settings.skips[cell.key])
        progress("load", 0.0)
        with ctx.stage("load"):
            model = self._float_model(suite, cell)
        common["preprocessing"] = dict(model.preprocessing)
        seed_everything(ctx.seed("global"))
        ctx.restart_memory()
        quantization = None
        forward: Callable[[Any], Any] = model.net
        if not cell.is_float:
            outcome = self._quantize(cell, method, suite, model, ctx)
            if isinstance(outcome, str):
                return skipped(outcome)
            forward, quantization = outcome
        peak = None if cell.is_float else (ctx.memory.peak_mib, ctx.memory.added_mib)
        progress("evaluate", 1.0)
        import torch

        with ctx.stage("evaluate"), torch.no_grad():
            evaluation = suite.evaluate(model, forward, cell.limit)
        peak = peak or (ctx.memory.peak_mib, ctx.memory.added_mib)
        metrics = {name: float(value) for name, value in evaluation.metrics.items()}
        _check_metrics(metrics, suite.primary_metric)
        record = Record(
            **common,
            status="ok",
            metrics=metrics,
            counters=dict(ctx.counters),
            stages=ctx.stages,
            diagnostics=ctx.kept_diagnostics,
            seconds=time.perf_counter() - clock,
            peak_memory_mib=peak[0],
            added_memory_mib=peak[1],
            quantization=quantization,
            images_from=ctx.images_from,
            finished=now(),
        )
        # What no command would believe later is not kept as a result now.
        wrong = flaw(record) or contradiction(record, evaluation.outcomes, catalog.tasks.get(cell.task).resampling)
        if wrong is not None:
            raise BadResult(f"the suite's evaluation {wrong}")
        images, snapshots = ctx.kept_images(model), ctx.kept_snapshots(model)
        return Measured(record, evaluation.outcomes, images, snapshots, evaluation.pictures)

    def _quantize(
        self, cell: Cell, method: ResolvedMethod, suite: Suite, model: VisionModel, ctx: Context
    ) -> tuple[Callable[[Any], Any], Quantization] | str:
        """The quantized model and its summary, or the reason why the method skips this combination."""
        spec = BitSpec.parse(cell.bits)
        if spec.mixed and not any(info.mixed for info in method.infos):
            return f"{method.name} gives all layers one width; {spec} needs a method that chooses them, such as clamp"
        tensors, part = split_scheme(cell.scheme)
        assert self._loaded is not None
        lacking = self._loaded[2].unmet(method.requires, cell.scheme)
        if lacking is not None:
            return lacking
        model.restrict(part)
        before = _weights_state(model), _hooks(model)
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
                quantized = built.quantize(model, spec=spec, scheme=tensors, calib=calib, ctx=ctx)
        _check_untouched(method.name, model, *before)
        return quantized, _summarise(method.name, quantized.summary)

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
            self._loaded = None  # free the old one before the new one is loaded
            requested = self._settings.requested.get(cell.model, cell.model)
            loaded = suite.load(requested, self._device)
            if suite.model_identity(requested) != cell.weights:
                raise UsageError(
                    f"model '{requested}' has other weights now than when the run was planned; run the command again"
                )
            model = replace(loaded, name=cell.model)
            self._loaded = key, model, Requirements(model)
        return self._loaded[1]


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _weights_state(model: VisionModel) -> list[str]:
    # Two sums a tensor: cheap beside any method, and an edit in place practically never keeps both.
    # As text, since NaN is not equal to itself.
    tensors = model.net.state_dict().values()
    return [repr((float(t.double().sum()), float(t.double().square().sum()))) for t in tensors]


def _hooks(model: VisionModel) -> int:
    found = (value for module in model.net.modules() for name, value in vars(module).items() if name.endswith("_hooks"))
    return sum(len(hooks) for hooks in found if isinstance(hooks, Mapping))


def _check_untouched(name: str, model: VisionModel, weights: list[str], hooks: int) -> None:
    """Raise BadResult unless the float model is as it was handed over; the next cell uses it."""
    changes = {
        "changed the float model that it was given": _weights_state(model) != weights,
        "left the float model in train mode": any(module.training for module in model.net.modules()),
        "left parameters of the float model requiring gradients": any(p.requires_grad for p in model.net.parameters()),
        "left hooks on the float model": _hooks(model) != hooks,
    }
    for change, happened in changes.items():
        if happened:
            raise BadResult(f"method '{name}' {change}")


def _summarise(name: str, summary: QuantSummary) -> Quantization:
    if summary.weight_sites <= 0 and summary.activation_sites <= 0:
        raise BadResult(f"method '{name}' quantized nothing: no weight and no activation site")
    return Quantization(
        weight_sites=summary.weight_sites,
        activation_sites=summary.activation_sites,
        weight_mib=summary.weight_mib,
        float_values=summary.float_values,
        layers=[Layer(name=layer.name, size=layer.size, bits=layer.bits) for layer in summary.layers],
        activation_ranges={site: (float(low), float(high)) for site, (low, high) in summary.activation_ranges.items()},
        activation_bits=dict(summary.activation_bits),
        bit_operations=summary.bit_operations or None,
    )


def _check_metrics(metrics: dict[str, float], primary: str) -> None:
    if primary not in metrics:
        raise BadResult(f"the evaluation gave no '{primary}', which the suite ranks by")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise BadResult(f"metric '{name}' is {value}")
