from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.results.record import SCHEMA_VERSION
from harness.results.store import Store
from harness.results.upgrade import UnknownVersion, upgrade

HISTORIC = Path(__file__).parents[1] / "historic_results"
FOLDERS = sorted(HISTORIC.glob("schema-*"))


def test_every_earlier_version_is_kept():
    assert [folder.name for folder in FOLDERS] == [f"schema-{version}" for version in range(1, SCHEMA_VERSION)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_of_earlier_versions_are_read(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store = Store(folder)
    records = store.records()
    assert {record.schema_version for record in records} == {SCHEMA_VERSION}
    assert {record.status for record in records} == {"ok", "failed", "skipped"}
    assert any(record.cell.is_float for record in records)
    for record in records:
        old = json.loads(before[f"{record.key}.json"])
        assert old["schema_version"] == int(folder.name.removeprefix("schema-"))
        assert record.metrics == old["metrics"]
        assert record.provenance.code == old["provenance"]["code"]
        if record.status == "ok":
            assert store.complete(record)
            assert 100 * store.outcomes(record.key)["correct"].mean() == pytest.approx(record.metrics["top1"])
            assert record.cell.is_float or record.quantization.weight_sites > 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # reading does not rewrite


def test_what_was_not_recorded_is_null():
    (old,) = (r for r in Store(HISTORIC / "schema-1").records() if r.cell.method == "noise")
    assert old.warnings is None
    assert old.provenance.variables is None
    for version in (1, 2):
        assert {record.sidecars for record in Store(HISTORIC / f"schema-{version}").records()} == {None}


def test_the_present_version_is_left_as_it_is():
    document = {"schema_version": SCHEMA_VERSION, "key": "k"}
    assert upgrade(document) == document


def test_upgrading_changes_no_input():
    document = {"schema_version": 1, "provenance": {"code": "c"}}
    upgrade(document)
    assert document == {"schema_version": 1, "provenance": {"code": "c"}}


@pytest.mark.parametrize("version", [0, None, "1", True, SCHEMA_VERSION + 1])
def test_unknown_versions(version, tmp_path):
    with pytest.raises(UnknownVersion):
        upgrade({"schema_version": version})
    path = tmp_path / f"{'0' * 64}.json"
    path.write_text(json.dumps({"schema_version": version}))
    store = Store(tmp_path)
    assert store.records() == []
    assert re.search(r"cannot be read \(schema version .* nothing was deleted", store.sentences()[0])
