from __future__ import annotations

import numpy as np
import pytest

from harness.report import write_report
from harness.report.figures.predictions import prediction_figures
from harness.report.frame import cells_frame
from harness.results.store import Store

from . import synthetic as fake


def drawn(shade: int, count: int = 5) -> dict[str, np.ndarray]:
    """Pictures of one shade, that of the truth another."""
    made = {"prediction": np.full((count, 20, 30, 3), shade, np.uint8)}
    return made | {"truth": np.full((count, 20, 30, 3), 250, np.uint8)}


RECORDS = [
    fake.record("float", metrics={"top1": 90.0}),
    *(
        fake.record(method, bits=bits, scheme=scheme, metrics={"top1": 80.0})
        for method in ("psaq", "noise+minmax")
        for bits in ("W8A8", "W4A4")
        for scheme in ("full", "full:backbone")
    ),
    fake.record("psaq", seed=1, metrics={"top1": 70.0}),
    fake.failed("clamp", 0),
]


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_one_figure_a_scheme_with_truth_float_and_methods():
    cells = cells_frame(RECORDS, {})
    shade = {record.key: number for number, record in enumerate(RECORDS)}
    figures = dict(prediction_figures(cells, lambda key: drawn(shade[key])))
    assert list(figures) == [("classification", "vit_a", scheme) for scheme in ("full", "full:backbone")]
    title, *rows = labels(figures["classification", "vit_a", "full"])
    assert title == "vit_a, W4A4, scheme full, seed 0; top-1 accuracy of 400 images, of which the first 4 are shown"
    assert rows == ["ground truth", "float\n90.00", "psaq\n80.00", "noise+minmax\n80.00"]
    shown = [axis.images[0].get_array() for axis in figures["classification", "vit_a", "full"].axes]
    assert [int(image.max()) for image in shown[:2]] == [250, 0]
    assert shown[0].shape == (20, 120, 3)
    keys = {(r.cell.method, r.cell.bits, r.cell.scheme): shade[r.key] for r in RECORDS}
    assert int(shown[2].max()) == keys["psaq", "W4A4", "full"]


@pytest.mark.parametrize("kept", [lambda key: {}, lambda key: drawn(1) if key == RECORDS[0].key else {}])
def test_without_pictures_of_a_method_there_is_no_figure(kept):
    assert not list(prediction_figures(cells_frame(RECORDS, {}), kept))


def test_files_are_written_and_none_is_left_over(tmp_path):
    store = Store(tmp_path)
    for record in RECORDS[:3]:
        fake.save(store, record, np.ones(400, bool), pictures=drawn(9))
    assert store.pictures(RECORDS[0].key)["truth"].shape == (5, 20, 30, 3)
    assert store.pictures("0" * 64) == {}
    (tmp_path / "report").mkdir()
    (tmp_path / "report/predictions_old.png").touch()
    write_report(store, tmp_path)
    names = sorted(path.name for path in (tmp_path / "report").glob("predictions_*"))
    assert names == [f"predictions_classification_vit_a_full{end}.png" for end in ("", "_backbone")]
