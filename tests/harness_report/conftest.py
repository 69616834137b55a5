from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalog.catalog import Catalog
from harness.results.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "cells"
    folder.mkdir()
    return Store(folder)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.default()
