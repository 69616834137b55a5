from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalog import Catalog
from harness.cell import Cell
from harness.runner import Settings
from harness.store import Store

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def catalog(monkeypatch) -> Catalog:
    """The default catalog with the toy package installed."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    return Catalog.default()


@pytest.fixture
def settings(catalog, tmp_path) -> Settings:
    (tmp_path / "cache").mkdir()
    return Settings(catalog, "cpu", 1, tmp_path / "cache")


@pytest.fixture
def store(tmp_path) -> Store:
    (tmp_path / "out").mkdir()
    return Store(tmp_path / "out")


@pytest.fixture
def toy_cell(catalog):
    def make(method: str = "toynoise", **changes) -> Cell:
        resolved = catalog.resolve(method, changes.pop("preset", "default"))
        fields = {"suite": "toy", "task": "toy", "model": "tiny", "weights": "w", "data": "d", "limit": None}
        fields |= {"method": resolved.name, "options": resolved.options, "bits": "W4A8", "scheme": "full", "seed": 0}
        if method == "float":
            fields |= {"bits": "FP32", "scheme": "none"}
        return Cell(**(fields | changes))

    return make
