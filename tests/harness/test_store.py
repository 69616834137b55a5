from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.io.files import prepare_folder, write_atomically, writing_report
from harness.results.record import Provenance, Quantization, Record
from harness.results.store import Store

HALF = pd.DataFrame({"correct": [True, False]})


class Unwritable:
    """An array until it is written."""

    shape = ()

    def __array__(self, *_, **__):
        raise ValueError("cannot pickle")


@pytest.fixture
def record(toy_cell) -> Record:
    cell = toy_cell()
    ranges = {"input": (-1.0, float("inf"))}
    quantization = Quantization(
        weight_sites=1, activation_sites=1, weight_mib=0.1, float_values=5, layers=[], activation_ranges=ranges
    )
    provenance = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)
    fields = {"status": "ok", "metrics": {"top1": 50.0}, "primary_metric": "top1", "quantization": quantization}
    return Record(key=cell.key, cell=cell, provenance=provenance, started="s", finished="f", **fields)


def test_round_trip(store, record):
    outcomes = pd.DataFrame({"correct": [True, False]})
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    snapshots = {20: images[:1], 0: images[1:]}
    saved = store.save(record, outcomes, images, snapshots)
    assert store.records() == [saved] == Store(store.folder).records()
    assert saved.model_copy(update={"sidecars": None}) == record
    assert store.complete(saved)
    pd.testing.assert_frame_equal(store.outcomes(record.key), outcomes)
    np.testing.assert_array_equal(store.images(record.key), images)
    found = store.snapshots(record.key)
    assert sorted(found) == [0, 20]
    for step, kept in snapshots.items():
        np.testing.assert_array_equal(found[step], kept)
    assert not list(store.folder.glob(".*"))


def test_no_images_is_none(store, record):
    assert store.images(record.key) is None
    assert store.snapshots(record.key) == {}


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_damaged_images_are_none(store, record, keep):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    store.save(record, images=images, snapshots={0: images})
    for kind in ("images", "snapshots"):
        path = store.folder / f"{record.key}.{kind}.npz"
        size = path.stat().st_size
        os.truncate(path, size + keep if keep < 0 else int(size * keep) if isinstance(keep, float) else keep)
    assert store.images(record.key) is None
    assert store.snapshots(record.key) == {}


@pytest.mark.parametrize("text", ["", "{", '{"key": 3}', "\x00", "[]", None])
def test_bad_record_is_named_and_kept(store, record, text):
    store.save(record, HALF)
    path = store.folder / f"{record.key}.json"
    path.write_text(path.read_text()[:-40] if text is None else text)
    assert store.records() == []
    (sentence,) = store.sentences()
    assert re.search(rf"record .*{record.key}\.json cannot be read .* nothing was deleted", sentence)
    assert path.exists()


def test_record_under_another_name(store, record):
    store.save(record, HALF)
    (store.folder / f"{record.key}.json").rename(store.folder / f"{'0' * 64}.json")
    assert store.records() == []
    assert "does not hold the cell that its name says" in store.sentences()[0]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 40)])
def test_damaged_outcomes(store, record, damage):
    saved = store.save(record, HALF)
    assert store.complete(saved)
    damage(store.folder / f"{record.key}.parquet")
    assert not store.complete(saved)
    with pytest.raises(UsageError, match="run the same bench command again"):
        store.outcomes(record.key)


def test_other_files_are_ignored(store, record):
    (store.folder / "report").mkdir()
    (store.folder / "notes.json").write_text("{")
    assert store.records() == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_leftovers_of_dead_processes_only_are_cleaned(tmp_path):
    script = (
        "import os, pathlib, sys; from harness.io.files import write_atomically\n"
        "write_atomically(pathlib.Path(sys.argv[1]), lambda p: (p.write_text('half'), os._exit(9)))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    (dead,) = tmp_path.iterdir()
    alive = tmp_path / dead.name.replace(dead.name.split(".")[-2], str(os.getpid()))
    alive.touch()
    prepare_folder(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == [alive]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write to folder .* --out"):
        prepare_folder(tmp_path / "file" / "out", "--out")


def test_empty_folder(tmp_path):
    assert Store(tmp_path / "missing").records() == []


def test_a_save_that_fails_changes_nothing(store, record):
    """Not even the sidecars that were written before the one that failed: the old record would stand beside them."""
    first = HALF
    saved = store.save(record, first, np.zeros((1, 4, 4, 1), np.uint8))

    class Full(pd.DataFrame):
        def to_parquet(self, path, **_):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    newer = record.model_copy(update={"metrics": {"top1": 100.0}})
    with pytest.raises(ValueError, match="pickle"):  # at the pictures, after the outcomes were written
        store.save(newer, pd.DataFrame({"correct": [True, True]}), pictures={"truth": Unwritable()})
    with pytest.raises(OSError, match="No space"):
        store.save(newer, Full({"correct": [True, True]}))
    assert store.records() == [saved]
    pd.testing.assert_frame_equal(store.outcomes(record.key), first)
    assert not list(store.folder.glob(".*"))
    saved = store.save(newer, pd.DataFrame({"correct": [True, True]}))
    assert store.records() == [saved]


def test_a_result_is_one_that_is_ok_and_complete(store, record):
    assert not store.has_result(record.key)
    store.save(record, HALF)
    assert store.has_result(record.key)
    (store.folder / f"{record.key}.parquet").unlink()
    assert not store.has_result(record.key)
    (store.folder / f"{record.key}.json").write_text("{")
    assert not store.has_result(record.key)


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"No space left on device.*all records are kept"), writing_report(tmp_path):
        raise OSError(28, "No space left on device")


def labelled(record: Record, name: str, **changes) -> Record:
    """The record as versions that counted brackets in the name as part of the key have it."""
    cell = record.cell.model_copy(update={"method": name})
    return record.model_copy(update={"cell": Cell(**cell.model_dump()), **changes})


def test_records_whose_keys_count_brackets_are_read(store, record):
    old = labelled(record, "toynoise[count=4]")
    old = old.model_copy(update={"key": old.cell.labelled_key})
    assert old.key != old.cell.key == record.key
    old = store.save(old, HALF)
    assert store.records() == [old]
    assert store.complete(old)
    new = store.save(record, HALF)
    assert store.records() == [new]  # the same cell, measured since


def test_a_record_under_a_key_of_neither_kind_is_refused(store, record):
    store.save(labelled(record, "toynoise[count=4]", key="0" * 64), HALF)
    assert store.records() == []
    assert "does not hold the cell that its key says" in store.sentences()[0]
