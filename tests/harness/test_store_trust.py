"""A results folder is not believed unseen: FAULTS K5 and K2, rows on records and their sidecars."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import harness.results.store
from harness.api.errors import UsageError
from harness.io.files import open_regular, prepare_folder, read_regular
from harness.plan.estimate import Estimator
from harness.plan.plan import Request, make_plan
from harness.results import sidecars
from harness.results.merge import merge
from harness.results.record import Failure, Provenance, Record
from harness.results.store import LISTED, Store

RIGHT = np.arange(50) < 2
IMAGES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
TOY = {"suite": "toy", "tasks": ("toy",), "references": False, "models": ("tiny",), "bits": ("W4A8",)}


def make(cell, right=RIGHT, **changes) -> Record:
    provenance = Provenance(code="c", versions={}, hardware={"cores": 2}, device="cpu", threads=1, git=None)
    fields = {"status": "ok", "metrics": {"top1": 100 * float(np.mean(right))}, "primary_metric": "top1", **changes}
    return Record(key=cell.key, cell=cell, provenance=provenance, started="s", finished="f", **fields)


def keep(store: Store, cell, right=RIGHT, **sidecars) -> Record:
    return store.save(make(cell, right), pd.DataFrame({"correct": right}), **sidecars)


def edit(store: Store, name_of_file: str, /, **changes) -> None:
    """Change fields of a record's JSON; a name with two underscores is a path."""
    path = store.folder / f"{name_of_file}.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        *folders, last = name.split("__")
        place = document
        for folder in folders:
            place = place[folder]
        place[last] = value
    path.write_text(json.dumps(document))


def used(store: Store) -> list[Record]:
    return [record for record in store.records() if store.complete(record)]


def only_sentence(store: Store) -> str:
    (sentence,) = store.sentences()
    assert "\n" not in sentence
    assert str(store.folder) in sentence
    return sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics__top1": 99.0}, "says top1 99.0000, but its outcomes give 4.0000 points"),
        ({"metrics__top1": float("nan")}, "cannot be read"),
        ({"metrics__top1": 250}, "outside of 0 to 100 points"),
        ({"metrics__top1": -3}, "outside of 0 to 100 points"),
        ({"metrics__top1": 1e308}, "outside of 0 to 100 points"),
        ({"metrics__mask_ap": 400.0}, "has mask_ap 400"),
        ({"primary_metric": "unknown"}, "ranks by 'unknown'"),
        ({"primary_metric": None}, "ranks by 'None'"),
        ({"metrics": {}}, "ranks by 'top1'"),
        ({"cell__seed": 7}, "does not hold the cell"),
        ({"cell__model": "other"}, "does not hold the cell"),
        ({"key": "0" * 64}, "does not hold the cell"),
        ({"status": "failed"}, "is failed and has metrics"),
        ({"sidecars": {}}, "was saved without outcomes"),
        ({"sidecars__outcomes__shapes": {"correct": [30]}}, "has shapes"),
    ],
)
def test_k5_an_edited_record_is_named_and_left_out(store, toy_cell, changes, said):
    """FAULTS K5 "a record's "top1": 4.0 edited to 99.0 ... also NaN, 250, 1e308, an unknown primary_metric"."""
    other = keep(store, toy_cell(seed=1))
    record = keep(store, toy_cell())
    edit(store, record.key, **changes)
    assert used(store) == [other]
    assert said in only_sentence(store)


@pytest.mark.parametrize("old", [False, True], ids=["schema 3", "schema 2"])
@pytest.mark.parametrize("right", [~RIGHT, RIGHT[:30], RIGHT.astype(float), RIGHT[:0]])
def test_k5_other_outcomes_are_not_believed(store, toy_cell, right, old):
    """FAULTS K5 "or its outcomes inverted ... 30 of 50 images", "zero rows"; also numbers for truth values."""
    record = keep(store, toy_cell(limit=len(RIGHT)))
    if old:
        edit(store, record.key, schema_version=2, sidecars=None)
        path = store.folder / f"{record.key}.json"
        path.write_text(path.read_text().replace('"sidecars": null, ', ""))
        assert used(store) == [record.model_copy(update={"sidecars": None})]
    pd.DataFrame({"correct": right}).to_parquet(store.folder / f"{record.key}.parquet")
    assert used(store) == []
    assert only_sentence(store)


def test_k5_outcomes_of_another_task_give_its_metric(store, toy_cell):
    """Further member: mean IoU is recomputed as the task itself does it."""
    confusions = np.array([[[3, 1], [0, 4]], [[5, 0], [2, 1]]])
    outcomes = pd.DataFrame({"index": [0, 1], "confusion": [c.ravel().tolist() for c in confusions]})
    pooled = confusions.sum(0)
    value = 100 * float(np.mean(np.diag(pooled) / (pooled.sum(0) + pooled.sum(1) - np.diag(pooled))))
    for seed, number in enumerate((value, value + 0.01)):
        made = make(toy_cell(task="segmentation", seed=seed), primary_metric="miou", metrics={"miou": number})
        store.save(made, outcomes)
    assert [record.cell.seed for record in used(store)] == [0]
    assert "but its outcomes give" in only_sentence(store)


def test_k5_a_copy_that_brings_the_record_first_is_no_result_until_the_rest_is_there(store, toy_cell, tmp_path):
    """FAULTS K5 "an interrupted copy brings `.json` before `.parquet`"."""
    record = keep(store, toy_cell(), images=IMAGES)
    copy = Store(tmp_path / "copy")
    copy.folder.mkdir()
    keep(copy, toy_cell(), ~RIGHT, images=IMAGES[:1])  # an earlier result in the same place
    shutil.copy(store.folder / f"{record.key}.json", copy.folder)
    assert used(copy) == []
    assert copy.images(record.key) is None
    assert not copy.has_result(record.key)
    for path in store.files(record.key):
        shutil.copy(path, copy.folder)
    assert used(copy) == [record]
    np.testing.assert_array_equal(copy.images(record.key), IMAGES)


def test_k5_files_of_two_processes_that_save_one_cell_never_mix(store, toy_cell, tmp_path):
    """FAULTS K5 "two processes save one cell at once": every order of their steps ends in one result or in none."""
    cell = toy_cell()
    sides = [Store(tmp_path / name) for name in "ab"]
    for side, right in zip(sides, (RIGHT, ~RIGHT), strict=True):
        side.folder.mkdir()
        keep(side, cell, right)
    for outcomes, document in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shutil.copy(sides[outcomes].folder / f"{cell.key}.parquet", store.folder)
        shutil.copy(sides[document].folder / f"{cell.key}.json", store.folder)
        found = used(store)
        assert found == (sides[document].records() if outcomes == document else [])


@pytest.mark.slow
def test_k5_processes_that_save_one_cell_at_once_leave_one_result_or_none(tmp_path, toy_cell):
    """The same, run."""
    script = (
        "import sys, pickle, pathlib; import numpy as np; from harness.results.store import Store\n"
        "record, outcomes = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "for _ in range(15): Store(pathlib.Path(sys.argv[2])).save(record, outcomes)"
    )
    import pickle

    folder = tmp_path / "out"
    folder.mkdir()
    running = []
    for number, right in enumerate((RIGHT, ~RIGHT)):
        path = tmp_path / f"{number}.pickle"
        path.write_bytes(pickle.dumps((make(toy_cell(), right), pd.DataFrame({"correct": right}))))
        running.append(subprocess.Popen([sys.executable, "-c", script, str(path), str(folder)]))
    assert [process.wait(120) for process in running] == [0, 0]
    store = Store(folder)
    for record in used(store):
        assert 100 * store.outcomes(record.key)["correct"].mean() == record.metrics["top1"]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("gone", ["json", "parquet"])
def test_what_another_process_takes_away_meanwhile_stops_no_save(store, toy_cell, monkeypatch, gone):
    """Of two that find an unusable record and put it aside, one comes second."""
    cell = toy_cell()
    keep(store, cell)
    (store.folder / f"{cell.key}.json").write_text("{}")
    make_folder = Path.mkdir

    def mkdir(path, *arguments, **options):
        if "unusable" in path.parts:
            (store.folder / f"{cell.key}.{gone}").unlink(missing_ok=True)
        return make_folder(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    keep(store, cell, ~RIGHT)
    (record,) = used(store)
    np.testing.assert_array_equal(store.outcomes(record.key)["correct"], ~RIGHT)


@pytest.mark.parametrize("status", ["ok", "skipped", "failed"])
def test_k2_a_record_saved_again_has_no_sidecars_of_the_earlier_one(store, toy_cell, status):
    """FAULTS K2 "a record saved again without images keeps the old images, snapshots, pictures"; CODE_REVIEW A5."""
    cell = toy_cell()
    keep(store, cell, images=IMAGES, snapshots={0: IMAGES}, pictures={"truth": IMAGES})
    assert len(store.files(cell.key)) == 5
    if status == "ok":
        keep(store, cell, ~RIGHT)
    else:
        store.save(make(cell, status=status, metrics={}))
    assert store.images(cell.key) is None
    assert store.snapshots(cell.key) == {} == store.pictures(cell.key)
    assert len(list(store.folder.iterdir())) == (2 if status == "ok" else 1)


def test_k2_sidecars_that_a_record_does_not_name_are_not_its_own(store, toy_cell, tmp_path):
    """Further member: files of an earlier record that a copy left beside a new one."""
    record = keep(store, toy_cell())
    other = Store(tmp_path / "other")
    other.folder.mkdir()
    keep(other, toy_cell(), images=IMAGES, pictures={"truth": IMAGES})
    for path in other.files(record.key)[1:3]:
        shutil.copy(path, store.folder)
    assert store.images(record.key) is None
    assert store.pictures(record.key) == {}
    assert [path.suffix for path in store.files(record.key)] == [".parquet", ".json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"schema_version": 3, "seconds": ' + b"9" * 5000 + b"}",
        b'{"schema_version": 3, "counters": {"n": ' + b"9" * 4000 + b"}}",
        b"[" * 100_000,
        b'{"diagnostics": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001,
        b'{"schema_version": ' + b"9" * 4999 + b"}",
        b'{"schema_version": "3"}',
        b'{"schema_version": 2, "provenance": []}',
        b'"\\ud800"',
        b"null",
        b"9" * 5000,
    ],
    ids=lambda content: str(content[:24]),
)
def test_k5_what_is_no_record_is_one_sentence(store, toy_cell, content):
    """FAULTS K5 "a 5,000-digit integer, deep nesting" and others."""
    other = keep(store, toy_cell(seed=1))
    (store.folder / f"{toy_cell().key}.json").write_bytes(content)
    assert used(store) == [other]
    assert "cannot be read" in only_sentence(store)


@pytest.mark.parametrize(
    "changes",
    [
        {"provenance__hardware": {"cores": float("nan")}},
        {"provenance__hardware": {"cores": float("inf")}},
        {"diagnostics": {"search": {"cycles": {"fitness": [float("nan")]}}}},
        {"diagnostics": {"search": {"cycles": 10**30}}},
        {"diagnostics": {"search": 3}},
        {"counters": {"images": 10**40}},
        {"seconds": float("inf")},
        {"seconds": "Infinity"},
        {"quantization": {"layers": []}},
        {"stages": {"load": {"seconds": "NaN"}}},
        {"provenance__threads": 2**70},
        {"warnings": [{"category": "c", "message": "\ud800", "where": "w", "count": 1}]},
        {"cell__seed": -1},
    ],
    ids=str,
)
def test_k5_numbers_that_no_run_gives_are_refused(store, toy_cell, changes):
    """FAULTS K5 "NaN hardware, odd diagnostics in a record"; further members: counters, seconds, lone surrogates."""
    record = keep(store, toy_cell())
    edit(store, record.key, **changes)
    assert used(store) == []
    assert only_sentence(store)


@pytest.mark.parametrize("old", [False, True], ids=["schema 3", "schema 2"])
def test_k5_flipped_bytes_of_sidecars_are_found(store, toy_cell, old):
    """FAULTS K5 "damaged parquet/npz (26 + 16 of 4,500 byte changes)": nothing but a sentence comes of any."""
    record = keep(store, toy_cell(), images=IMAGES)
    if old:
        edit(store, record.key, sidecars=None)
    generator = np.random.default_rng(0)
    for suffix, look in (
        (".parquet", lambda: store.complete(store.record(record.key))),
        (".images.npz", lambda: store.images(record.key) is not None),
    ):
        path = store.folder / f"{record.key}{suffix}"
        whole = path.read_bytes()
        for place in generator.integers(0, len(whole), 60):
            damaged = bytearray(whole)
            damaged[place] ^= int(generator.integers(1, 256))
            path.write_bytes(damaged)
            store.records()
            assert not (believed := look()) or old
            assert believed or only_sentence(store)
        path.write_bytes(whole)
        assert look()


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(float),
        IMAGES[0],
        IMAGES[..., :2],
        IMAGES[:0],
        np.array([b"text"]),
        np.zeros((1, 1, 9000, 3), np.uint8),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_k5_images_of_a_wrong_shape_or_kind_are_left_out(store, toy_cell, images):
    """FAULTS K5 "wrong shape or dtype of images", in an old record and in one that says itself what they are."""
    sidecars = {"images": images, "snapshots": {0: images}, "pictures": {"truth": images}}
    for seed, (kind, value) in enumerate(sidecars.items()):
        cell = toy_cell(seed=seed)
        keep(store, cell, **{kind: value})
        found = getattr(store, kind)(cell.key)
        assert found is None or found == {}
    assert len(store.sentences()) == 3
    assert len(used(store)) == 3  # no number depends on them


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "link", "folder"])
@pytest.mark.parametrize("suffix", [".json", ".parquet", ".images.npz"])
def test_k5_only_regular_files_are_opened(store, toy_cell, suffix, kind, tmp_path):
    """FAULTS K5 "a FIFO, a device or a link to one as record, images"; also sockets and folders."""
    record = keep(store, toy_cell(), images=IMAGES)
    path = store.folder / f"{record.key}{suffix}"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK)
    else:
        (target := tmp_path / "target") if kind == "link" else None
        if kind == "link":
            os.mkfifo(target)
        path.symlink_to(target if kind == "link" else "/dev/zero")
    found = used(store)
    assert store.images(record.key) is None or suffix == ".parquet"
    assert (found == []) == (suffix != ".images.npz")
    assert only_sentence(store).count("not a regular file") == 1


def test_k5_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than"):
        open_regular(path)
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(path, 4)


def test_reading_needs_no_more_memory_than_the_file_has(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    tracemalloc.start()
    assert read_regular(tmp_path / "a") == b"12345"
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20
    # Files of the kernel say that they are empty, and others may grow: both are read to the end.
    monkeypatch.setattr("harness.io.files._PIECE", 2)
    real = os.fstat
    monkeypatch.setattr("os.fstat", lambda number: os.stat_result((*real(number)[:6], 0, *real(number)[7:])))
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(tmp_path / "a", 4)


@pytest.mark.parametrize(
    ("metric", "said"),
    [(lambda value: value / 100, "but its outcomes give"), (lambda value: 100 + value, "outside of 0 to 100")],
)
def test_a_metric_that_is_not_that_of_the_outcomes_fails_its_cell(settings, toy_cell, monkeypatch, metric, said):
    """Further member: a suite that gives a share instead of points; nothing would believe its record."""
    import dfq_toy_suite

    from harness.api.contracts import Evaluation
    from harness.run.runner import CellRunner

    plain = dfq_toy_suite.Suite.evaluate

    def evaluate(self, model, forward, limit):
        found = plain(self, model, forward, limit)
        return Evaluation({"top1": metric(found.metrics["top1"])}, found.outcomes)

    monkeypatch.setattr(dfq_toy_suite.Suite, "evaluate", evaluate)
    record = CellRunner(settings).measure(toy_cell("float", options={}), lambda *_: None).record
    assert record.status == "failed"
    assert said in record.failure.message


def test_k5_estimating_costs_the_same_with_any_number_of_records(toy_cell):
    """FAULTS K5 "3,000 records, 300 cells left: 0.41 s of estimating per cell": sums are kept, not all seconds."""
    estimator = Estimator()
    sizes = set()
    for number in range(200):
        estimator.learn(make(toy_cell(), seconds=number))
        sizes.add(sum(len(held) for held in vars(estimator).values()))
        assert all(len(held) == 2 for held in estimator._sums.values())
    assert len(sizes) == 1
    assert estimator.seconds(toy_cell(seed=3)) == pytest.approx(99.5)


def test_a_folder_is_parsed_once_however_often_it_is_read(store, toy_cell, catalog, monkeypatch):
    """CODE_REVIEW D "4 full parses of the folder per bench"; a file that has changed is read anew."""
    for seed in range(3):
        keep(store, toy_cell(seed=seed))
    parsed = []
    plain = harness.results.store._parsed
    monkeypatch.setattr(
        harness.results.store, "_parsed", lambda content, key: parsed.append(key) or plain(content, key)
    )
    make_plan(Request(methods=("toynoise",), seeds=3, **TOY), catalog, store)
    for _ in range(3):
        assert len(used(store)) == 3
    assert len(parsed) == 3
    edit(store, toy_cell().key, metrics__top1=5.0)
    assert len(used(store)) == 2
    assert len(parsed) == 4


def test_halves_of_surrogate_pairs_in_a_message_cost_no_record(store, toy_cell):
    """Further member: an error that names a file whose name is no UTF-8."""
    failure = Failure(type="E", message="no \udcff here", traceback="\ud800")
    saved = store.save(make(toy_cell(), status="failed", metrics={}, failure=failure, reason="\udcff"))
    assert store.records() == [saved]
    assert saved.failure.message == "no \\udcff here"


def test_what_contradicts_itself_is_measured_again_and_kept_aside(store, toy_cell, catalog):
    """It counts as not done, and is never deleted."""
    request = Request(methods=("toynoise",), **TOY)
    (planned,) = [p for p in make_plan(request, catalog, store).cells if not p.cell.is_float]
    keep(store, planned.cell)
    edit(store, planned.cell.key, metrics__top1=99.0)
    (again,) = [p for p in make_plan(request, catalog, store).cells if not p.cell.is_float]
    assert (again.state, again.run) == ("new", True)
    edited = (store.folder / f"{planned.cell.key}.json").read_bytes()
    for number in (1, 2):
        keep(store, planned.cell, ~RIGHT)
        assert (store.folder / "unusable" / str(number) / f"{planned.cell.key}.json").read_bytes() == edited
        assert (store.folder / "unusable" / str(number) / f"{planned.cell.key}.parquet").exists()
        assert [record.metrics for record in used(store)] == [{"top1": 96.0}]
        (store.folder / f"{planned.cell.key}.json").write_bytes(edited)


def test_merging_takes_what_can_be_used_and_names_the_rest(cli, store, toy_cell, tmp_path):
    good, bad, lost = (keep(store, toy_cell(seed=seed)) for seed in range(3))
    edit(store, bad.key, metrics__top1=99.0)
    (store.folder / f"{lost.key}.parquet").unlink()
    output = cli("merge", str(store.folder), "--into", "into", code=3).output
    assert output.count("LEFT OUT") == 2
    assert Store(tmp_path / "into").records() == [good]
    assert len(list(store.folder.iterdir())) == 5


def test_a_record_that_can_be_used_takes_the_place_of_one_that_cannot(store, toy_cell, tmp_path):
    target = Store(tmp_path / "into")
    target.folder.mkdir()
    keep(target, toy_cell(), images=IMAGES)
    edit(target, toy_cell().key, metrics__top1=99.0)
    record = keep(store, toy_cell(), ~RIGHT)
    done = merge([store.folder], target.folder)
    assert (done.better, done.conflicts, done.left_out) == (1, [], [])
    assert used(target) == [record]
    assert target.images(record.key) is None
    assert len(list((target.folder / "unusable" / "1").iterdir())) == 3


def test_many_sentences_are_cut(store, toy_cell):
    for seed in range(LISTED + 5):
        (store.folder / f"{hashlib.sha256(str(seed).encode()).hexdigest()}.json").write_text("{")
    assert store.records() == []
    assert len(store.sentences()) == LISTED + 1
    assert store.sentences()[-1].startswith("5 more files")


@pytest.mark.parametrize(
    "command",
    [
        ("tables", "--out"),
        ("report", "--out"),
        ("diagnose", "--out"),
        ("merge", "other", "--into"),
        ("merge", "--into", "into"),
        ("bench", "--suite", "toy", "--tasks", "toy", "--methods", "toynoise", "--no-references", "--out"),
        ("plan", "--suite", "toy", "--tasks", "toy", "--methods", "toynoise", "--no-references", "--out"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_k5_names_of_folders_that_are_too_long_are_a_sentence(cli, command, tmp_path):
    """FAULTS K5 "names over 255 bytes"."""
    (tmp_path / "other").mkdir()
    cli(*command, "x" * 300, code=2)


@pytest.mark.parametrize("call", ["listdir", "stat"])
def test_k5_folders_that_may_not_be_read_are_a_sentence(cli, store, toy_cell, monkeypatch, call):
    """FAULTS K5 "folders that may not be read (`--out`, merge)": as root nothing is forbidden, so the call is."""
    keep(store, toy_cell())
    plain = getattr(os, call)

    def denied(path, *arguments, **options):
        if str(path).startswith(str(store.folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, call, denied)
    folder = str(store.folder)
    toy = ("--suite", "toy", "--tasks", "toy", "--methods", "toynoise", "--no-references")
    for command in (("tables", "--out", folder), ("report", "--out", folder), ("merge", folder, "--into", "x")):
        cli(*command, code=2)
    if call == "listdir":
        cli("bench", *toy, "--out", folder, code=2)
    with pytest.raises(UsageError, match="Permission denied"):
        prepare_folder(Path(folder), "--out")


def test_merging_imports_neither_torch_nor_matplotlib():
    """CODE_REVIEW D "merge imports report" to copy files."""
    script = (
        "import sys, harness.results.merge; print([n for n in ('torch', 'matplotlib', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        ({"correct": RIGHT}, True),
        ({"label": np.arange(50), "correct": RIGHT}, True),
        ({"correct": RIGHT.astype(float)}, False),
        ({"correct": [True, None] * 25}, False),
        ({"label": np.arange(50)}, False),
    ],
)
def test_right_images_are_read_without_a_frame_where_that_is_the_same(tmp_path, columns, read):
    frame = pd.DataFrame(columns)
    sidecars.table_writer(frame)(tmp_path / "outcomes.parquet")
    content = (tmp_path / "outcomes.parquet").read_bytes()
    said = sidecars.described(content, dict.fromkeys(columns, (50,)))
    found = sidecars.right_of(content, said)
    expected = sidecars.table(content, said)["correct"].tolist() if read else None
    assert (None if found is None else found.tolist()) == expected
    assert sidecars.right_of(content, sidecars.described(content, {"correct": (49,)})) is None
    assert sidecars.right_of(content[:-1] + b"x", said) is None


def test_what_was_found_to_agree_is_remembered_and_nothing_else_is(store, toy_cell, monkeypatch):
    """Between runs, under hashes of the record's numbers, of the outcomes and of what checks them."""
    monkeypatch.setattr(harness.results.store, "_WORTH_KEEPING", 1)
    kept = keep(store, toy_cell())
    assert store.complete(kept)
    store.remember()
    read: list[str] = []
    check = Store._check
    monkeypatch.setattr(
        Store, "_check", lambda self, record, content: read.append(record.key) or check(self, record, content)
    )
    assert used(Store(store.folder)) == [kept]
    assert not read
    edit(store, kept.key, metrics={"top1": 12.5})
    assert used(Store(store.folder)) == []
    assert read == [kept.key]
    monkeypatch.setattr(harness.results.store, "checker", lambda: "another")
    keep(store, toy_cell())
    read.clear()
    assert len(used(Store(store.folder))) == 1
    assert read == [kept.key]
