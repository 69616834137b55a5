"""What sweeps have in common that write a line of JSON for each run, and go on where they were killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for, code_of_infos
from harness.identity.cell import Cell
from harness.run.context import Context


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that were written; what a kill cut off is removed from the file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Write one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def context_of(catalog: Catalog, cell: Cell, cache: Path) -> Context:
    """What a cell's sources and methods are given, on one thread of the CPU, with images kept in `cache`."""
    return Context(
        cell,
        cache=cache,
        code=code_for(catalog, cell),
        code_of=partial(code_of_infos, catalog.tasks.get(cell.task)),
        device=torch.device("cpu"),
        threads=1,
        report=lambda _text, _fraction: None,
    )
