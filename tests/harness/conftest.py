from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import switches
from commands import later
from typer.testing import CliRunner

from harness.catalog.catalog import Catalog
from harness.cli.main import app
from harness.identity.cell import Cell
from harness.results.store import Store
from harness.run.runner import CellRunner, Settings

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
def runner(settings) -> Iterator[CellRunner]:
    """A runner in this process, whose switches are put back."""
    with switches.put_back():
        yield CellRunner(settings)


@pytest.fixture
def store(tmp_path) -> Store:
    (tmp_path / "out").mkdir()
    return Store(tmp_path / "out")


@pytest.fixture
def cli(catalog, tmp_path, monkeypatch):
    """A command in this process and in an empty folder; checks the exit code, and that an error is one sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(app, later(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        if code == 2:
            assert result.stderr.startswith("Error: ")
            assert len(result.stderr.splitlines()) == 1
        return result

    return run


@pytest.fixture
def toy_cell(catalog):
    def make(method: str = "toynoise", **changes) -> Cell:
        resolved = catalog.resolve(method, changes.pop("preset", "default"))
        fields = {
            "suite": "toy",
            "task": "toy",
            "model": "tiny",
            "weights": "weights of tiny",
            "data": "toy data 1",
            "limit": None,
        }
        fields |= {"method": resolved.name, "options": resolved.options, "bits": "W4A8", "scheme": "full", "seed": 0}
        if method == "float":
            fields |= {"bits": "FP32", "scheme": "none"}
        return Cell(**(fields | changes))

    return make
