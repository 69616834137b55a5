"""The benchmark: registry, cells, plan, runner, store, statistics, reports. Knows no method or task by name."""

__version__ = "0.1.0"
