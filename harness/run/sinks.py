"""Experiment trackers that a run can also report to. They are extras: nothing here is imported before it is asked for.

A tracker gets numbers that are in the results folder anyway, so that whatever goes wrong with it is a warning.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from harness.api.errors import UsageError
from harness.catalog.registry import check_known
from harness.results.record import Record

Scalar = str | int | float | bool


class Sink(Protocol):
    """Where results go, one run of the tracker per cell. Any method may raise anything."""

    def start(self, facts: Mapping[str, Scalar]) -> None:
        """A sweep begins; `facts` hold for all of its cells, among them `suite`."""

    def cell(self, name: str, coordinates: Mapping[str, Scalar], numbers: Mapping[str, float]) -> None:
        """A cell ended: its name, what it is, and its metrics, seconds and sizes by name."""

    def finish(self) -> None:
        """The sweep ended, perhaps early."""


class _MLflow:
    """MLflow: an experiment per suite, a run per cell. MLFLOW_TRACKING_URI decides where it goes."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._facts: Mapping[str, Scalar] = {}

    def start(self, facts: Mapping[str, Scalar]) -> None:
        self._facts = facts
        self._mlflow.set_experiment(f"dfqbench-{facts['suite']}")

    def cell(self, name: str, coordinates: Mapping[str, Scalar], numbers: Mapping[str, float]) -> None:
        with self._mlflow.start_run(run_name=name):
            self._mlflow.log_params({**self._facts, **coordinates})
            self._mlflow.log_metrics(dict(numbers))

    def finish(self) -> None:
        """Every run is closed already."""


class _Runs:
    """Weights & Biases, and trackio, which has its interface: a project per suite, a run per cell."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._facts: Mapping[str, Scalar] = {}

    def start(self, facts: Mapping[str, Scalar]) -> None:
        self._facts = facts

    def cell(self, name: str, coordinates: Mapping[str, Scalar], numbers: Mapping[str, float]) -> None:
        group = f"{coordinates['model']} {coordinates['bits']} {coordinates['scheme']}"
        project = f"dfqbench-{self._facts['suite']}"
        self._module.init(project=project, name=name, group=group, config={**self._facts, **coordinates})
        try:
            self._module.log(dict(numbers))
        finally:
            self._module.finish()

    def finish(self) -> None:
        """Every run is finished already."""


_SINKS: Mapping[str, Callable[[Any], Sink]] = {"mlflow": _MLflow, "wandb": _Runs, "trackio": _Runs}
SINKS = tuple(_SINKS)


def open_sink(name: str) -> Sink:
    """The sink called `name`.

    Raises:
        UsageError: no such sink, or its package is not installed.
    """
    check_known("--sink", name, SINKS)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        # The environment is nox's more often than the one whose pip a user has at hand.
        text = f"--sink {name} needs a package that is not here ({error}); {sys.executable} -m pip install {name}"
        raise UsageError(text) from None
    return _SINKS[name](module)


class Reporter:
    """Sends records to a sink; the first error is told, and nothing more is sent. Without a sink it does nothing."""

    def __init__(self, sink: Sink | None, warn: Callable[[str], object]) -> None:
        self._sink = sink
        self._warn = warn

    def start(self, facts: Mapping[str, Scalar]) -> None:
        """A sweep begins."""
        self._try(lambda sink: sink.start(facts))

    def cell(self, record: Record) -> None:
        """Send a record, if it has a number."""
        if record.status == "ok":
            self._try(lambda sink: sink.cell(f"{record.cell.suite} {record.cell.label}", *_parts(record)))

    def finish(self) -> None:
        """The sweep ended."""
        self._try(lambda sink: sink.finish())

    def _try(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:  # a tracker may raise anything; results are in the folder
            failed, self._sink = self._sink, None
            self._warn(f"The tracker failed and gets nothing more ({type(error).__name__}: {error}).")
            with suppress(Exception):
                failed.finish()


def _parts(record: Record) -> tuple[dict[str, Scalar], dict[str, float]]:
    """Coordinates and numbers of a record."""
    cell, found = record.cell, record.quantization
    coordinates: dict[str, Scalar] = {
        **cell.model_dump(exclude={"options", "limit", "weights", "data"}),
        "preset": cell.preset,
        "limit": "all" if cell.limit is None else cell.limit,
        "key": record.key,
        "origin": record.origin,
        "data": record.data,
    }
    numbers = {**record.metrics, "seconds": record.seconds}
    numbers |= {f"seconds_{name}": stage.seconds for name, stage in record.stages.items()}
    if record.peak_memory_mib is not None:
        numbers["peak_memory_mib"] = record.peak_memory_mib
    if found is not None:
        numbers |= {"weight_mib": found.weight_mib, "mean_weight_bits": found.mean_weight_bits}
    return coordinates, numbers
