"""Merging folders: what is copied, what is left, what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.report import write_report
from harness.report.page.page import Images, page
from harness.report.results import load
from harness.results.exported import Difference, Exported, InRuntime, keep_exported, read_exported
from harness.results.merge import merge
from harness.results.record import Failure, Provenance, Record
from harness.results.store import Store

SIDECARS = {"images": np.ones((2, 4, 4, 1), np.uint8)}


@pytest.fixture
def fill(toy_cell, tmp_path):
    """Writes records into a folder: seed -> which of 10 images are right, or None for a failed cell."""

    def write(
        folder: str, rights: dict[int, list[int] | None], *, processor: str = "a", sure: float | None = None, **sidecars
    ) -> Store:
        store = Store(tmp_path / folder)
        store.folder.mkdir(exist_ok=True)
        for seed, right in rights.items():
            cell = toy_cell(seed=seed)
            fields = {
                "key": cell.key,
                "cell": cell,
                "started": "2026-01-01T00:00:00Z",
                "finished": "2026-01-02T00:00:00Z",
            }
            hardware = {"processor": f"processor {processor}"}
            fields["provenance"] = Provenance(
                code="c", versions={"torch": "2"}, hardware=hardware, device="cpu", threads=1, git=None
            )
            if right is None:
                failure = Failure(type="ValueError", message="x")
                store.save(Record(**fields, status="failed", failure=failure))
                continue
            outcomes = pd.DataFrame({"correct": np.isin(np.arange(10), right)})
            if sure is not None:
                outcomes["confidence"] = np.float32(sure)
            metrics = {"top1": 10.0 * len(right)}
            record = Record(**fields, status="ok", primary_metric="top1", metrics=metrics, seconds=len(processor))
            store.save(record, outcomes, **sidecars)
        return store

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_cell_end_with_the_record(fill):
    pictures = {"pictures": {"truth": SIDECARS["images"]}, "snapshots": {0: SIDECARS["images"]}}
    store = fill("a", {0: [1]}, **SIDECARS, **pictures)
    (record,) = store.records()
    names = [path.name.removeprefix(record.key) for path in store.files(record.key)]
    assert names == [".parquet", ".images.npz", ".snapshots.npz", ".pictures.npz", ".json"]
    assert set(store.files(record.key)) == set(store.folder.iterdir())


def test_records_are_copied_with_their_sidecars(fill, tmp_path):
    a, b = fill("a", {0: [1], 1: [2]}, **SIDECARS), fill("b", {2: [3]})
    done = merge([a.folder, b.folder], tmp_path / "into")
    assert (done.copied, done.same, done.better, done.conflicts) == (3, 0, 0, [])
    assert contents(tmp_path / "into") == contents(a.folder) | contents(b.folder)
    again = merge([a.folder, b.folder], tmp_path / "into")
    assert (again.copied, again.same) == (0, 3)


def test_equal_numbers_are_one_record(fill, tmp_path):
    a, b = fill("a", {0: [1, 2]}), fill("b", {0: [1, 2]}, processor="other")  # another machine, other seconds
    done = merge([a.folder, b.folder], tmp_path / "into")
    assert (done.copied, done.same, done.conflicts) == (1, 1, [])
    assert contents(tmp_path / "into") == contents(a.folder)


@pytest.mark.parametrize("other", [[1, 2, 3], [1, 3]])
def test_other_numbers_or_outcomes_are_kept_aside(fill, tmp_path, other):
    a, b = fill("a", {0: [1, 2]}), fill("b", {0: other}, processor="b", **SIDECARS)
    into = Store(tmp_path / "into")
    (conflict,) = merge([a.folder, b.folder], into.folder).conflicts
    assert (conflict.kept, conflict.other) == (a.records()[0], b.records()[0])
    assert into.records() == a.records()
    (found,) = into.conflicts()
    assert (found.kept, found.other) == (conflict.kept, conflict.other)
    assert contents(found.store.folder) == contents(b.folder)
    before = contents(into.folder)
    merge([b.folder, a.folder], into.folder)  # again, in another order
    assert contents(into.folder) == before


@pytest.mark.parametrize("sure", [0.8000001, None])
def test_confidences_may_differ_by_rounding_or_be_missing(fill, tmp_path, sure):
    """They do between machines, and older records do not say them."""
    a, b = fill("a", {0: [1, 2]}, sure=0.8), fill("b", {0: [1, 2]}, sure=sure)
    done = merge([a.folder, b.folder], tmp_path / "into")
    assert (done.copied, done.same, done.conflicts) == (1, 1, [])


def test_conflicts_travel_but_not_to_where_they_are_none(fill, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [2, 3]}, processor="b")
    merge([a.folder, b.folder], tmp_path / "ab")
    merge([tmp_path / "ab"], tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "ab")
    merge([tmp_path / "ab", b.folder], tmp_path / "d")
    assert len(Store(tmp_path / "d").conflicts()) == 1
    merge([b.folder, tmp_path / "ab"], tmp_path / "e")
    assert [conflict.other for conflict in Store(tmp_path / "e").conflicts()] == a.records()


def test_a_number_takes_the_place_of_a_failure_only(fill, tmp_path):
    failed, ok = fill("a", {0: None, 1: [1]}), fill("b", {0: [1], 1: None})
    done = merge([failed.folder, ok.folder], tmp_path / "into")
    assert (done.copied, done.better, done.same, done.conflicts) == (2, 1, 1, [])
    assert [record.status for record in Store(tmp_path / "into").records()] == ["ok", "ok"]


def test_an_incomplete_record_gives_way(fill, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [1, 2]})
    next(a.folder.glob("*.parquet")).unlink()
    done = merge([a.folder, b.folder], tmp_path / "into")
    assert (done.copied, done.better, done.conflicts) == (1, 0, [])
    assert contents(tmp_path / "into") == contents(b.folder)
    (left_out,) = done.left_out
    assert left_out.startswith("file ")
    assert ".parquet cannot be read" in left_out


def test_bad_folders(fill, tmp_path):
    a = fill("a", {0: [1]})
    with pytest.raises(UsageError, match="no results folder"):
        merge([a.folder, tmp_path / "nowhere"], tmp_path / "into")
    with pytest.raises(UsageError, match="source and the target"):
        merge([a.folder], tmp_path / "x" / ".." / "a")
    (a.folder / f"{'0' * 64}.json").write_text("{")
    done = merge([a.folder], tmp_path / "into")
    assert (done.copied, len(done.left_out)) == (1, 1)
    assert "cannot be read" in done.left_out[0]


@pytest.mark.slow
def test_the_report_shows_conflicts(fill, catalog, tmp_path, capsys):
    a, b = fill("a", {0: [1, 2]}), fill("b", {0: [1, 2, 3]}, processor="b")
    into = Store(tmp_path / "into")
    merge([a.folder, b.folder], into.folder)
    results = write_report(into, into.folder, catalog=catalog)
    assert "1 cell has records that contradict each other; see conflicts.md." in capsys.readouterr().out
    text = (into.folder / "report" / "conflicts.md").read_text()
    for part in ("top1 20.0000", "top1 30.0000", "processor a", "processor b", "| kept", "toy tiny toynoise W4A8"):
        assert part in text
    html = page(results, Images(into.images, into.snapshots, into.pictures), None, None)
    assert "Records that contradict each other" in html
    assert "top1 30.0000" in html
    assert "<li>Merged folders had other numbers" in html
    for path in sorted((into.folder / "conflicts").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    results = write_report(into, into.folder, catalog=catalog)
    assert not (into.folder / "report" / "conflicts.md").exists()
    assert "contradict each other" not in page(results, Images(into.images, into.snapshots, into.pictures), None, None)


def test_the_command(cli, fill, tmp_path):
    a, b = fill("a", {0: [1], 1: [4]}), fill("b", {0: [1, 2]}, processor="b")
    assert "2 records copied to c, 0 were there already, 0 contradict" in cli("merge", "a", "--into", "c").output
    output = cli("merge", "a", "b", "--into", "c", code=1).output
    assert "CONFLICT toy tiny toynoise W4A8 full seed 0" in output
    assert "c: top1 10.0000 (git –, versions torch 2, hardware processor a, threads 1)" in output
    assert "top1 20.0000 (git –, versions torch 2, hardware processor b, threads 1)" in output
    assert "records that contradict each other" in cli("merge", "a", "--into", "c", code=1).output
    assert "no results folder" in cli("merge", "nowhere", "--into", "c", code=2).stderr
    (tmp_path / "empty").mkdir()
    cli("merge", "empty", "--into", "d", code=4)
    assert a.records()
    assert b.records()


def test_a_conflict_ends_when_its_other_side_takes_the_place(fill, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [1, 2]}, processor="b")
    into = Store(tmp_path / "into")
    merge([a.folder, b.folder], into.folder)
    (found,) = into.conflicts()
    key = found.other.key
    for path in into.files(key):
        path.unlink()
    assert [conflict.kept for conflict in into.conflicts()] == [None]
    merge([b.folder], into.folder)  # the other side is its own record now
    assert into.records() == b.records()
    assert into.conflicts() == []


@pytest.mark.parametrize(("right", "conflicts"), [([1, 2], 0), ([1, 3], 1)])
def test_a_record_of_a_key_with_brackets_is_the_same_cell(fill, tmp_path, right, conflicts):
    store = fill("a", {0: [1, 2]})
    (new,) = store.records()
    cell = Cell(**{**new.cell.model_dump(), "method": "toynoise[count=4]"})
    old = Store(tmp_path / "old")
    old.folder.mkdir()
    record = new.model_copy(update={"cell": cell, "key": cell.labelled_key})
    old.save(record, pd.DataFrame({"correct": np.isin(np.arange(10), right)}))
    for number, sources in enumerate(([store.folder, old.folder], [old.folder, store.folder])):
        target = tmp_path / f"into{number}"
        merged = merge(sources, target)
        assert (merged.copied, merged.same, len(merged.conflicts)) == (1, 1 - conflicts, conflicts)
        assert len(Store(target).records()) == 1
        assert len(Store(target).conflicts()) == conflicts


@pytest.fixture
def exported(toy_cell):
    """Keeps what is known of an exported cell in a folder's `exported/`, as of that time."""

    def keep(folder: Path, seed: int, made: str = "2026-01-01", top1: float = 50.0) -> Path:
        cell = toy_cell(seed=seed)
        none = Difference(same=100.0, mean=0.0, rms=0.0, largest=0.0)
        one = InRuntime(
            runtime="abacus", version="1", supported=True, metrics={"top1": top1}, float_metrics={}, to_fake=none,
            relative=0.0, verdict="same", computed=[],
        )  # fmt: skip
        whole = Exported(
            key=cell.key, cell=cell, primary_metric="top1", images=10, metrics={"top1": 50.0}, float_metrics={},
            quantization=none, files={}, runtimes=[one], processor={"processor": "Slide rule"}, features=[], code="c",
            versions={}, made=made,
        )  # fmt: skip
        path = folder / "exported" / f"{cell.key}.json"
        keep_exported(whole, path)
        return path

    return keep


def test_exports_come_along(cli, catalog, fill, exported, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {1: [2]})
    for folder, seed in ((a.folder, 0), (b.folder, 0), (b.folder, 1)):
        exported(folder, seed)
    shown = cli("merge", "a", "b", "--into", "c").output
    assert "2 exports copied to c/exported, 1 were there already, 0 contradict what was there." in shown
    assert contents(tmp_path / "c") == contents(a.folder) | contents(b.folder)
    assert len(load(Store(tmp_path / "c"), catalog).exported) == 2
    fill("e", {2: [1]})
    assert "exports" not in cli("merge", "e", "--into", "f").output


def test_another_export_of_a_cell_is_kept_aside_and_shown(cli, fill, exported, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [1]})
    exported(a.folder, 0)
    exported(b.folder, 0, made="2026-02-02", top1=60.0)
    shown = cli("merge", "a", "b", "--into", "c", code=1).output
    assert "CONFLICT exported toy tiny toynoise W4A8 full seed 0" in shown
    assert "    c/exported: abacus top1 50.0000 (made 2026-01-01 on Slide rule)" in shown
    assert "/exported: abacus top1 60.0000 (made 2026-02-02 on Slide rule)" in shown
    assert "0 were there already, 1 contradict what was there." in shown
    assert "Of 1 cells c now has exports that contradict each other" in shown
    into = tmp_path / "c"
    (other,) = (into / "conflicts").rglob("*.json")
    assert read_exported(into) == read_exported(a.folder)
    assert read_exported(other.parents[1]) == read_exported(b.folder)
    before = contents(into)
    cli("merge", "a", "b", "--into", "c", code=1)  # the same one twice has one place
    assert contents(into) == before
    cli("merge", "c", "--into", "d", code=1)  # it travels
    assert contents(tmp_path / "d") == before
    other.unlink()
    cli("merge", "a", "--into", "c")


def test_an_export_of_another_day_says_the_same(cli, fill, exported, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [1]})
    exported(a.folder, 0)
    exported(b.folder, 0, made="2026-02-02")
    shown = cli("merge", "a", "b", "--into", "c").output
    assert "1 exports copied to c/exported, 1 were there already, 0 contradict" in shown
    assert read_exported(tmp_path / "c") == read_exported(a.folder)


def test_exports_that_cannot_be_used_are_left_where_they_are(cli, fill, exported, tmp_path):
    a, b = fill("a", {0: [1]}), fill("b", {0: [1]})
    good, bad = exported(a.folder, 0), exported(b.folder, 0)
    bad.write_text("{}")
    good.with_name("other.json").write_bytes(good.read_bytes())
    shown = cli("merge", "a", "b", "--into", "c", code=3).output
    assert "LEFT OUT file b/exported/" in shown
    assert "other.json does not hold the cell that its name says; it is left out, nothing was deleted" in shown
    assert contents(tmp_path / "c" / "exported") == {good.name: good.read_bytes()}
    cli("merge", "a", "--into", "b", code=3)  # whose own one cannot be used, and makes room
    assert bad.read_bytes() == good.read_bytes()
    assert (b.folder / "unusable" / "1" / bad.name).read_text() == "{}"
