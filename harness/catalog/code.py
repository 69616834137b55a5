"""The code that a cell's number depends on."""

from __future__ import annotations

from harness.api.plugins import PluginInfo, TaskInfo
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.identity.code import Code, code_of


def code_for(catalog: Catalog, cell: Cell) -> Code:
    """The code that a cell's number depends on, third-party plugins included."""
    return code_of_infos(catalog.tasks.get(cell.task), *catalog.restore(cell.method, cell.options).infos)


def code_of_infos(*infos: TaskInfo | PluginInfo) -> Code:
    """The code behind plugins, and what of the harness measures them."""
    packages = frozenset(package for info in infos for package in info.packages)
    return code_of(frozenset(info.target for info in infos), packages)


def is_builtin(catalog: Catalog, cell: Cell) -> bool:
    """Whether the project's own code alone measures the cell."""
    return catalog.is_builtin(catalog.restore(cell.method, cell.options))
