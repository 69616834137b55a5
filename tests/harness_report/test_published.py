"""Published numbers: every file parses, every number has a source and a label, and none is a mere recollection."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "results" / "published"
FILES = sorted(FOLDER.glob("*.csv"))
COLUMNS = ["method", "model", "task", "dataset", "metric", "bits", "scheme", "value", "source", "evidence", "note"]
LABELS = {"V", "R", "P", "R/P", "N", "U", "V2"}  # explained in results/published/README.md; M, a recollection, is none
METRICS = {
    ("classification", "imagenet"): {"top1"},
    ("detection", "coco"): {"box_ap", "mask_ap"},
    ("segmentation", "ade20k"): {"miou"},
}
KEY = ["method", "model", "dataset", "metric", "bits", "scheme", "source"]


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={name: str for name in COLUMNS if name != "value"}, keep_default_na=False)


def test_there_are_files_and_the_readme_names_each():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert [path.name for path in FILES if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_row_is_complete_and_plausible(path):
    table = read(path)
    assert list(table.columns) == COLUMNS
    assert len(table)
    for name in COLUMNS[:-1]:
        assert table[name].astype(str).str.strip().ne("").all(), name
    assert pd.api.types.is_float_dtype(table["value"])
    assert table["value"].between(0, 100, inclusive="right").all()
    for (task, dataset, metric), _ in table.groupby(["task", "dataset", "metric"]):
        assert metric in METRICS[task, dataset]
    assert table["bits"].map(lambda b: bool(re.fullmatch(r"W\d+A\d+|MP\d(\.\d+)?A\d(\.\d+)?", b))).all()
    assert set(table["scheme"]) <= {"full", "matmul", "matmul+rec", "none", "unknown"}
    is_float = table["method"].eq("float")
    assert is_float.eq(table["bits"].eq("W32A32")).all()
    assert is_float.eq(table["scheme"].eq("none")).all()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_row_has_a_label_and_none_is_a_recollection(path):
    table = read(path)
    assert set(table["evidence"]) <= LABELS
    assert not table[["source", "note"]].apply(lambda column: column.str.contains(r"\[M\]")).to_numpy().any()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_number_stands_twice(path):
    table = read(path)
    assert table[table.duplicated(KEY, keep=False)].empty


def test_clamp_vits_own_numbers_come_from_its_authors():
    table = pd.concat([read(path) for path in FILES])
    own = table[table["method"].eq("CLAMP-ViT") & table["evidence"].eq("V")]
    assert dict(zip(own["model"], own["value"], strict=True)) == {
        "DeiT-T": 71.69,
        "DeiT-S": 79.43,
        "Swin-T": 81.78,
        "Swin-S": 82.86,
    }
    assert own["source"].str.contains("georgia-tech-synergy-lab/CLAMP-ViT").all()
