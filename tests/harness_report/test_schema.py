"""results/schema.md describes the records that are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.identity.cell import Cell
from harness.results.record import SCHEMA_VERSION, Record

SCHEMA = Path(__file__).parents[2] / "results" / "schema.md"


@pytest.mark.parametrize(("model", "section"), [(Record, "Record, schema version"), (Cell, "Cell")])
def test_schema_names_every_field(model: type[Record | Cell], section: str) -> None:
    (text,) = (part for part in SCHEMA.read_text().split("\n## ") if part.startswith(section))
    fields = [cell for line in text.splitlines() if line.startswith("| `") for cell in line.split("|")[1].split(",")]
    assert sorted(field.strip(" `") for field in fields) == sorted(model.model_fields)


def test_schema_has_the_present_version() -> None:
    assert f"schema version {SCHEMA_VERSION}\n" in SCHEMA.read_text()
