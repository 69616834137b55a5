"""How metrics are written out and which stand beside the primary one, as the tasks that are installed say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache

from harness.api.plugins import Metric
from harness.catalog.catalog import Catalog


def title(name: str) -> str:
    """A metric written out, with its unit; its name if no task knows it."""
    return known().get(name, Metric(name)).title


def label(name: str) -> str:
    """A metric written out, without its unit."""
    return known().get(name, Metric(name)).shown


def secondary() -> tuple[str, ...]:
    """Names of the metrics that tables show beside a primary one."""
    return tuple(name for name, metric in known().items() if metric.secondary)


def known() -> Mapping[str, Metric]:
    """Every metric of a task that can be used, by name."""
    return _of(tuple(sys.path))


@cache
def _of(_path: tuple[str, ...]) -> Mapping[str, Metric]:
    usable, _ = Catalog.default().tasks.load_all()
    found: dict[str, Metric] = {}
    for task in usable.values():
        for metric in task.metrics:
            found.setdefault(metric.name, metric)  # the project's own tasks come first
    return found
