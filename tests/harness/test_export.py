"""The command `export` from the method's name to the folder, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

import dfqbench
from harness.api.errors import UsageError
from harness.export import runtimes
from harness.export.card import _ratio
from harness.export.compare import Comparison, verdict
from harness.export.remake import differing_images
from harness.identity.code import Code
from harness.results.exported import FOLDER, Difference, Exported, read_exported
from harness.results.store import Store

CELL = ("noise", "--suite", "tiny", "--models", "vit", "--bits", "W4A8", "--schemes", "matmul", "--preset", "quick")
CPU = ("--threads", "1")
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# As where none of the packages that made a file are installed.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {*"torch torchvision timm dfqbench harness methods tasks onnx onnxscript".split()}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def first(folder: Path) -> Path:
    (found,) = [each for each in folder.iterdir() if each.is_dir()]
    return found


@pytest.mark.slow
def test_a_cell_is_written_checked_and_shown(cli, tmp_path) -> None:
    shown = cli("export", *CELL, *CPU, "--out", "run", "--to", "files").output
    assert "same prediction as fake-quantized" in shown
    folder = first(tmp_path / "files")
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "float.onnx", "model.safetensors", "export.json", "README.md", "example.png")
    }
    (exported,), problems = read_exported(tmp_path / "run")
    assert not problems
    assert exported == Exported.model_validate_json((folder / "export.json").read_text())
    (one,) = exported.runtimes
    assert one.verdict == "same"
    assert [(each.kernel, each.integer) for each in one.computed if not each.integer] == [("Conv", False)]
    assert exported.files["model.onnx"] < exported.files["float.onnx"]
    assert len(one.timings) >= 2
    # The record was stored, and the same cell is held against it.
    (record,) = [each for each in Store(tmp_path / "run").records() if not each.cell.is_float]
    assert record.key == exported.key
    # The lines of the model card run as they stand, with no more than they name.
    (script,) = CODE.findall((folder / "README.md").read_text())
    assert len(script.strip().splitlines()) <= 10
    alone = [sys.executable, "-I", "-c", ALONE + script]
    done = subprocess.run(alone, cwd=folder, capture_output=True, text=True, check=True)
    outcomes = Store(tmp_path / "run").outcomes(record.key)
    assert int(done.stdout.split()[0]) == outcomes.loc[outcomes["index"] == 0, "prediction"].item()
    model = dfqbench.load(folder / "model.safetensors")
    assert model.summary.weight_sites == 10
    labels, batch = _first_batch()
    with torch.no_grad():
        logits = model(batch[:1])
    assert int(done.stdout.split()[0]) == int(logits.argmax(1))
    assert float(done.stdout.split()[1]) == pytest.approx(float(logits.max()), abs=0.05)
    assert len(labels) == len(batch)
    # Again, from the folder: the stored record is the measure.
    cli("export", "--from", "run", "--key", record.key[:10], "--to", "again")
    assert (first(tmp_path / "again") / "model.onnx").is_file()


def _first_batch():
    from tasks.classification.suite import open_suite

    suite = open_suite("tiny")
    model = suite.load("vit", torch.device("cpu"))
    batch, labels = next(iter(suite.data.evaluation(model, 20)))
    return labels, batch


def test_outcomes_are_equal_as_they_are_stored(tmp_path) -> None:
    new = pd.DataFrame({"index": [0, 1], "score": [np.array([0.5, 0.25]), np.array([])], "confidence": [0.5, 0.25]})
    new.to_parquet(tmp_path / "outcomes.parquet", index=False)
    stored = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert differing_images(stored, new) == 0
    assert differing_images(stored.drop(columns="confidence"), new) == 0
    stored["score"] = [[0.5, 0.125], []]
    assert differing_images(stored, new) == 1
    assert differing_images(stored[:1], new) == 1


def test_another_outcome_than_the_record_is_refused(cli, tmp_path, monkeypatch) -> None:
    cli("bench", "--methods", "noise", *CELL[1:], *CPU, "--out", "run", "--no-references", "--in-process")
    monkeypatch.setattr(Store, "outcomes", lambda *_: pd.DataFrame({"index": range(60), "prediction": [7] * 60}))
    shown = cli("export", *CELL, *CPU, "--out", "run", "--to", "files", code=2).stderr
    assert "the model made now differs from the record of" in shown
    assert "stale" not in shown
    # Of a record that other code made, it says so, and what to do.
    monkeypatch.setattr("harness.export.remake.code_for", lambda *_: Code("another", ()))
    shown = cli("export", *CELL, *CPU, "--out", "run", "--to", "files", code=2).stderr
    assert "(it is stale: other code or versions made it); measure the cell anew with bench --rerun all" in shown
    assert not (tmp_path / "files").exists() or not list((tmp_path / "files").glob("*/model.onnx"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fqvit", *CELL[1:]), "fqvit cannot be exported: its model is a IntegerQuantized, which replaces operations"),
        (("noise+noisyquant", *CELL[1:]), "noisyquant cannot be exported"),
        (("noise+adalog", *CELL[1:]), "would run in float32"),
        (("noise", "--task", "detection"), "a whole detection model cannot be exported"),
        ((), "name either a method, or a results folder"),
        (("noise", "--runtimes", "tensorrt"), "runtime 'tensorrt'"),
        (("--from", "nowhere", "--key", "00"), "there is no results folder nowhere"),
        ((*CELL, "--to", "file/in"), "cannot write to folder file/in"),
        (
            ("--from", "run", "--key", "00", "--bits", "W8A8", "--seed", "0", "--option", "noise.images=8"),
            "a cell is exported as its record has it; leave out --bits, --seed, --option",
        ),
        (("float", *CELL[1:]), "the float reference is not quantized"),
        ((*CELL, "--seed", "-1"), "--seed must be 0 to 999, not -1"),
        ((*CELL, "--key", "00"), "--key names a cell of a results folder; give that with --from FOLDER"),
    ],
)
def test_what_is_refused(cli, tmp_path, arguments, sentence) -> None:
    (tmp_path / "file").write_text("")
    assert sentence in cli("export", *arguments, *CPU, code=2).stderr


@pytest.mark.parametrize("method", ["noise", "noise[images=8]", "noise[images=8]+omse"])
def test_a_recorded_cell_is_planned_again_whatever_its_name_has_in_brackets(cli, tmp_path, monkeypatch, method):
    cli(
        "bench", "--methods", method, *CELL[1:], *CPU, "--seeds", "1", "--out", "run", "--no-references", "--in-process"
    )
    (key,) = [each.key for each in Store(tmp_path / "run").records() if not each.cell.is_float]
    found = []
    monkeypatch.setattr("harness.export.export.export_cells", lambda cells, *_: found.extend(cells) or 0)
    cli("export", "--from", "run", "--key", key)
    assert [(cell.key, cell.method) for cell in found] == [(key, method)]


def test_a_missing_extra_is_one_sentence(cli, monkeypatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert cli("export", *CELL, code=2).stderr == "Error: export needs onnxscript: pip install 'dfqbench[export]'\n"


@pytest.mark.slow
def test_a_runtime_that_computes_another_model_is_an_error(cli, monkeypatch) -> None:
    from harness.export.runtimes.onnx_runtime import _Session

    own = _Session.__call__
    monkeypatch.setattr(_Session, "__call__", lambda self, images: [-own(self, images)[0]])
    result = cli("export", *CELL, *CPU, "--out", "run", "--to", "files", code=1)
    assert re.search(r"gives other predictions than the quantized model on [\d.]+ % of the images", result.output)


def test_what_is_slower_is_not_called_faster() -> None:
    assert _ratio(3.0, 2.0, "faster", "slower") == "1.50 times faster"
    assert _ratio(2.0, 3.0, "faster", "slower") == "1.50 times slower"
    assert _ratio(2.0, 2.0, "less", "more") == "1.00 times less"
    assert _ratio(0.0, 0.0, "less", "more").endswith("times more")


def test_verdicts() -> None:
    same = Difference(same=99.6, mean=0.0, rms=0.1, largest=1.0)
    assert verdict(same, 0.9) == "same"
    assert verdict(same.model_copy(update={"same": 98.5}), 0.9) == "close"
    assert verdict(same.model_copy(update={"same": 90.0}), 0.2) == "close"
    assert verdict(same.model_copy(update={"same": 83.6}), 2.0) == "wrong"
    assert verdict(same.model_copy(update={"same": None}), 0.05) == "same"
    assert verdict(same.model_copy(update={"same": None}), 0.6) == "wrong"


def test_comparison_counts_predictions_and_differences() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    comparison = Comparison(
        lambda x: [x.numpy() + 1.0], lambda x: [x.numpy()], lambda x: [x.numpy() * torch.tensor([3.0, 1.0]).numpy()]
    )
    assert torch.equal(comparison(images), images + 1.0)
    assert comparison.to_fake == Difference(same=100.0, mean=1.0, rms=1.0, largest=1.0)
    assert comparison.quantization.largest == 2.0
    assert comparison.relative == pytest.approx(1.0)


def test_kept_files_of_others_are_refused(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"", b"{}", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            dfqbench.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        dfqbench.load(tmp_path / "none")


def test_unreadable_exports_are_left_out(tmp_path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.json").write_text(json.dumps({"key": "a"}))
    found, problems = read_exported(tmp_path)
    assert not found
    assert "is no export" in next(iter(problems.values()))
