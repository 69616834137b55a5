"""The benchmark itself: registry, cells, plan, runner, store, statistics, reports. Knows no method and no task by name."""

__version__ = "0.1.0"
