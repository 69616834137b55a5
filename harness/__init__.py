"""The benchmark: registry, cells, plan, runner, store, statistics, reports. Knows no method or task by name, but for
the command line's defaults and the two reference sources.
"""

__version__ = "0.1.0"
