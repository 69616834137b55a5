"""Cells that are measured on a device and on the CPU: one of every registered method, small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_options import TINY

from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from methods.catalog import CALIBRATORS, METHODS, SOURCES

# Plugins run with these where they have such an option, else as their preset says: images and ranges mean something.
SHORT: Mapping[str, Any] = TINY | {
    "images": 32,
    "steps": 20,
    "refresh_steps": 5,
    "held_out_steps": 5,
    "scale_steps": 10,
    "image_steps": 5,
    "student_steps": 10,
    "wide_steps": 20,
}
ONLY_MATMUL = {"noise+adalog", "noise+noisyquant"}  # they skip scheme full
# What runs on no network of the usual families.
ELSEWHERE = {"ouromamba-gen+minmax": "vim", "noise+ouromamba": "vim", "noise+trio": "efficientvit"}
NAMES = tuple(
    dict.fromkeys([*METHODS, *(f"{name}+minmax" for name in SOURCES), *(f"noise+{name}" for name in CALIBRATORS)])
)


@dataclass(frozen=True)
class Where:
    """Suite and model that methods are compared on, and how much of both."""

    suite: str
    model: str
    bits: str
    limit: int | None
    options: Mapping[str, Any]
    data_root: Path | None = None


def cell_of(name: str, where: Where, store: Store, more: Mapping[str, Mapping[str, Any]] | None = None) -> Cell:
    """The cell of a method, or of `float`; `more` are options of its plugins beside those of `where`."""
    catalog = Catalog.default()
    infos = catalog.resolve(name).infos if name != "float" else ()
    overrides = {
        info.name: {k: v for k, v in where.options.items() if k in info.options.model_fields}
        | dict((more or {}).get(info.name, {}))
        for info in infos
    }
    request = Request(
        methods=(name,) if infos else ("noise+minmax",),
        models=(ELSEWHERE.get(name, where.model),),
        bits=(where.bits,),
        schemes=("matmul" if name in ONLY_MATMUL else "full",),
        suite=where.suite,
        data_root=where.data_root,
        limit=where.limit,
        preset="quick",
        overrides={plugin: options for plugin, options in overrides.items() if options},
        references=False,
    )
    cells: Sequence[Cell] = [planned.cell for planned in make_plan(request, catalog, store).cells]
    return next(cell for cell in cells if cell.is_float == (name == "float"))
