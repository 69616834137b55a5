"""Published numbers beside reproduced ones: who is set beside whom, and that the two are never mixed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.report import tables
from harness.report.frame import cells_frame
from harness.report.sections import field, published
from harness.report.summary import summarise
from harness.results.published import COLUMNS, FOLDER, Published, read
from harness.results.record import Record

from . import synthetic as fake

DEIT = "timm:deit_small_patch16_224"
HEADER, ROW = ",".join(COLUMNS), "a,b,c,d,e,W4A8,g,1.5,h,P,j"
NO_NAMES = "[methods]\n[models]\n[bits]\n[schemes]\n[calibration]\n"
IMAGENET = {"suite": "imagenet", "limit": None}


def measured(method: str, value: float, seed: int = 0, **changes: object) -> Record:
    return fake.record(method, seed, **{"model": DEIT, "metrics": {"top1": value}, **IMAGENET, **changes})


def numbers(*rows: dict[str, object]) -> Published:
    base = {
        **{"method": "PSAQ-ViT", "model": "DeiT-S", "task": "classification", "dataset": "imagenet", "metric": "top1"},
        **{"bits": "W4A8", "scheme": "full", "value": 73.23, "source": "a README", "evidence": "V", "note": ""},
    }
    return Published(pd.DataFrame([{**base, **row} for row in rows], columns=COLUMNS), read().names)


def beside(given: Published, *records: Record) -> tuple[pd.DataFrame, str]:
    means = published.measured(records, cells_frame(records, {}))
    frame = published.beside(given, means)
    return frame, published.verdict(frame, given, means)


def test_a_number_meets_the_mean_of_its_measurements() -> None:
    records = [measured("psaq", value, seed, bits="W4A8") for seed, value in enumerate((72.0, 74.0))]
    frame, sentence = beside(numbers({}), *records)
    (row,) = frame.to_dict("records")
    assert (row["published"], row["reproduced"], row["seeds"]) == (73.23, 73.0, 2)
    assert row["difference"] == pytest.approx(-0.23)
    assert row["reproduced_sd"] == pytest.approx(np.std([72, 74], ddof=1))
    assert sentence == "1 of 1 published numbers were measured here too."
    text = published.markdown(frame, sentence)
    assert re.search(r"\| PSAQ-ViT +\| DeiT-S \| W4A8 .*\| +73\.23 \| 73\.00 ± 1\.41 +\| +-0\.23 \|", text)
    assert "1. a README" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": "W8A8"},
        {"scheme": "matmul", "bits": "W4A8"},
        {"model": "timm:deit_tiny_patch16_224", "bits": "W4A8"},
        {"model": f"{DEIT}_distilled", "bits": "W4A8"},
        {"model": f"{DEIT}@random", "bits": "W4A8"},
        {"method": "psaq+omse", "bits": "W4A8"},
        {"method": "psaq[steps=500]", "bits": "W4A8"},
        {"suite": "embedded", "bits": "W4A8"},
        {"metrics": {"top5": 90.0}, "bits": "W4A8"},
        {"bits": "W4A8", "status": "failed", "metrics": {}},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_one_coordinate_off_is_no_counterpart(changes: dict[str, object]) -> None:
    fields = {"metrics": {"top1": 73.0}, **changes}
    method = str(fields.pop("method", "psaq"))
    frame, _ = beside(numbers({}), fake.record(method, **{"model": DEIT, **IMAGENET, **fields}))
    (row,) = frame.to_dict("records")
    assert row["published"] == 73.23
    assert np.isnan(row["reproduced"])


def test_tags_files_and_the_float_model_are_counterparts() -> None:
    given = numbers({}, {"method": "float", "bits": "W32A32", "scheme": "none", "value": 79.85})
    records = [
        measured("psaq", 73.0, bits="W4A8", model=f"{DEIT}.fb_in1k"),
        measured("psaq", 72.0, bits="W4A8", model=f"{DEIT}@0123abcd", weights="others"),
        measured("float", 79.5),
    ]
    frame, sentence = beside(given, *records)
    assert frame[["method", "reproduced"]].to_numpy().tolist() == [
        ["PSAQ-ViT", 73.0],
        ["PSAQ-ViT", 72.0],
        ["float", 79.5],
    ]
    assert sentence.startswith("2 of 2 published numbers")
    assert published.measured_as(frame) == ["psaq, quick, .fb_in1k", "psaq, quick, @0123abcd", "float"]


def test_reconstruction_sites_are_the_matmul_scheme_and_unknown_ones_are_none() -> None:
    given = numbers(
        {"method": "QDrop", "bits": "W4A4", "scheme": "matmul+rec", "value": 68.27},
        {"method": "QDrop", "bits": "W4A4", "scheme": "unknown", "value": 60.0},
    )
    frame, _ = beside(given, measured("real+qdrop", 67.0, bits="W4A4", scheme="matmul", trains="quantizers"))
    assert frame["reproduced"].tolist()[0] == 67.0
    assert frame["reproduced"].isna().tolist() == [False, True]
    assert frame["measured_method"].iloc[0] == "real+qdrop †"


def test_a_suite_without_published_models_is_said_in_a_sentence_and_the_numbers_are_listed() -> None:
    given = read()
    frame, sentence = beside(given, fake.record("psaq", metrics={"top1": 80.0}), fake.record("float"))
    assert sentence.startswith("No model measured here (vit_a; suite embedded) has a published number")
    assert sentence.count(".") == 1
    assert frame["reproduced"].isna().all()
    text = published.markdown(frame, sentence)
    assert sentence in text
    assert "published and reproduced" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| method", "| ---"))]
    assert len(rows) == len(given.numbers)
    assert max(map(len, rows)) <= tables.WIDTH


def test_no_match_in_spite_of_a_known_model_says_so() -> None:
    _, sentence = beside(numbers({}), measured("psaq", 73.0, bits="W3A3"))
    assert sentence.startswith("No published number agrees")


def test_published_numbers_change_no_table_of_measured_ones() -> None:
    records = [measured("psaq", 73.0, bits="W4A8"), measured("float", 79.5)]
    cells = cells_frame(records, {})
    before = tables.csv(summarise(cells, {})), tables.csv(cells)
    beside(numbers({"value": 1.0}), *records)
    assert (tables.csv(summarise(cells, {})), tables.csv(cells)) == before
    assert set(published.measured(records, cells)["mean"]) == {73.0, 79.5}


def test_recollections_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = numbers({"evidence": "V"}, {"evidence": "M"}, {"evidence": "[M]"}, {"note": "from memory [M]"}).numbers
    rows.to_csv(tmp_path / "some.csv", index=False)
    (tmp_path / "names.toml").write_text(NO_NAMES)
    found = read(tmp_path)
    assert (len(found.numbers), found.recollected) == (1, 3)
    frame = published.beside(found, published.measured([], cells_frame([], {})))
    sentence = published.verdict(frame, found, published.measured([], cells_frame([], {})))
    assert sentence.endswith("3 recollections that nobody has checked (label M) are left out.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "method,value\nx,1\n", "have no column model, task"),
        ("a.csv", f"{HEADER},weight\n", "have a column 'weight', which is not known"),
        ("a.csv", f"{HEADER}\n{ROW},much\n", "row 2: more values than columns"),
        ("a.csv", f"{HEADER}\n{ROW}\n{ROW},much\n", "cannot be read: Error tokenizing data"),
        ("a.csv", f"{HEADER}\n{ROW.replace('1.5', 'much')}\n", "row 2: value 'much' is not a number of points"),
        ("a.csv", f"{HEADER}\n{ROW.replace('1.5', 'nan')}\n", "row 2: value 'nan' is not a number of points"),
        ("a.csv", f"{HEADER}\n{ROW}\n{ROW.replace('1.5', '101')}\n", "row 3: value '101' is not a number of points"),
        ("a.csv", f"{HEADER}\n{ROW.replace('1.5', '-1')}\n", "row 2: value '-1' is not a number of points"),
        ("a.csv", f"{HEADER}\n{ROW.replace('1.5', 'inf')}\n", "row 2: value 'inf' is not a number of points"),
        ("a.csv", f"{HEADER}\n{ROW.replace('P', 'm')}\n", "row 2: evidence 'm' is not known; known: V, R, P, "),
        ("a.csv", f"{HEADER}\n{ROW.replace('W4A8', 'w4a8')}\n", "row 2: bits 'w4a8' are written W4A8"),
        ("a.csv", f"{HEADER}\n{ROW.replace('W4A8', 'w32a32')}\n", "row 2: bits 'w32a32' are written W32A32"),
        ("a.csv", f"{HEADER}\n{ROW.replace('W4A8', 'MP4.50')}\n", "row 2: bits 'MP4.50' are written MP4.5"),
        ("names.toml", "[models\n", "names of published numbers"),
        ("names.toml", NO_NAMES.replace("[models]", "[model]"), "is not valid (model: is not known)"),
        ("names.toml", NO_NAMES.replace("[models]", ""), "is not valid (models: is missing)"),
        ("names.toml", NO_NAMES.replace("[models]", "[models]\nx = 1"), "is not valid (models.x: Input should be a"),
        ("names.toml", f"models = 1\n{NO_NAMES.replace('[models]', '')}", "is not valid (models: Input should be a"),
        (
            "names.toml",
            NO_NAMES.replace("[bits]", "[bits]\nx = 'w4a8'"),
            "'x' in [bits] is 'w4a8'; write FP32, or bits",
        ),
        (
            "names.toml",
            NO_NAMES.replace("[bits]", "[bits]\nx = 'FP23'"),
            "'x' in [bits] is 'FP23'; write FP32, or bits",
        ),
        (
            "names.toml",
            NO_NAMES.replace("[schemes]", "[schemes]\nx = 'ful'"),
            "'x' in [schemes] is 'ful', which is not",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{ROW}\n")
    (tmp_path / "names.toml").write_text(NO_NAMES)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        read(tmp_path)
    assert name in str(raised.value)


def test_blanks_around_values_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{ROW.replace(',', ' , ')}\n")
    (tmp_path / "names.toml").write_text(NO_NAMES)
    (row,) = read(tmp_path).numbers.to_dict("records")
    assert list(row.values()) == ["a", "b", "c", "d", "e", "W4A8", "g", 1.5, "h", "P", "j"]


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no published numbers"):
        read(tmp_path)


def test_csv_and_latex_hold_every_number() -> None:
    given = numbers({}, {"method": "I&S-ViT", "scheme": "matmul", "value": 50.5})
    frame, sentence = beside(given, measured("psaq", 73.0, bits="W4A8"))
    again = pd.read_csv(io.StringIO(published.csv(frame)))
    assert again["published"].tolist() == [73.23, 50.5]
    assert again["difference"].iloc[0] == frame["difference"].iloc[0]
    text = published.latex(frame, sentence)
    assert text.count(r"\begin{longtable}") == 2
    assert r"I\&S-ViT" in text
    assert "-0.23" in text


def test_the_fields_best_is_the_highest_number_of_its_kind() -> None:
    given = numbers(
        {"method": "PSAQ-ViT", "value": 50.0},
        {"method": "CLAMP-ViT", "value": 60.0},
        {"method": "MaskAQ", "value": 70.0},
        {"method": "RepQ-ViT", "value": 80.0, "evidence": "N"},
        {"method": "GLF-Q", "value": 80.0},
        {"method": "ERQ", "value": 99.0, "bits": "MP4.9A6.2"},
        {"method": "float", "value": 99.0, "bits": "W32A32", "scheme": "none"},
        {"method": "CLAMP-ViT", "value": 65.0, "bits": "W8A8"},
    )
    ((title, table),) = field.split(field.best(given))
    assert title == "classification on imagenet, top-1 accuracy (%): the field's best"
    assert table.reset_index().to_numpy().tolist() == [
        ["DeiT-S", "W8A8", tables.NONE, "65.00 CLAMP-ViT (V)", tables.NONE],
        ["DeiT-S", "W4A8", "80.00 GLF-Q (V)", "60.00 CLAMP-ViT (V)", "70.00 MaskAQ (V)"],
    ]
    assert list(table.columns) == ["bits", "real images", "data-free", "data-free, weights trained"]
    found = read()
    assert set(found.names["calibration"]) <= set(found.numbers["method"])


def test_every_name_has_a_counterpart_that_exists() -> None:
    found = read(FOLDER)
    catalog = Catalog.default()
    assert set(found.names["methods"]) <= set(found.numbers["method"])
    assert set(found.names["models"]) <= set(found.numbers["model"])
    for name in found.names["methods"].values():
        assert catalog.resolve(name).name == name
    for name in found.names["models"].values():
        assert timm.is_model(name.removeprefix("timm:"))
