"""Nothing in a cell depends on where its tensors are: on a CUDA device that is pretended here, and on a real one."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from device_cells import NAMES, SHORT, Where, cell_of
from gpu import Case, Compared, Timed, cases, compare_methods, compared, main, methods_table, throughput_table
from pretended_cuda import pretended_cuda
from rich.console import Console
from tiny_options import TINY

from harness.catalog.catalog import Catalog
from harness.results.store import Store
from harness.run.runner import CellRunner, Measured, Settings
from methods.catalog import METHODS
from methods.core.numerics import chunks

FAST = ("noise+minmax", "psaq+minmax", "noise+repq")
# What torch calls not repeatable on CUDA and is here: counts, and weights that are whole numbers in float64.
EXACT = {"not repeatable: bincount"}


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process of their own for pretended devices."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def _measure(name: str, model: str, device: str, folder: Path) -> Measured:
    where = Where("tiny", model, "W4A6", None, TINY)
    (folder / device).mkdir()
    runner = CellRunner(Settings(Catalog.default(), device, 1, folder / device))
    return runner.measure(cell_of(name, where, Store(folder)), lambda *_: None)


def _both(name: str, model: str) -> tuple[Measured, Measured, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        # Batches of candidates as on the CPU, or sums would be of other lengths and round otherwise.
        with pretended_cuda() as noted, patch.dict(chunks._LARGEST, {"cuda": chunks._LARGEST["cpu"]}):
            there = _measure(name, model, "cuda", Path(folder))
        return there, _measure(name, model, "cpu", Path(folder)), dict(noted)


@pytest.mark.usual(model="vit")
@pytest.mark.usual(name=[*METHODS, *NAMES[::10]])
@pytest.mark.fast(name=list(FAST), model="vit")
@pytest.mark.parametrize("model", ["vit", "swin"])
@pytest.mark.parametrize("name", NAMES)
def test_a_method_gives_the_same_number_wherever_its_tensors_are(
    name: str, model: str, process: ProcessPoolExecutor
) -> None:
    there, here, noted = process.submit(_both, name, model).result()
    assert there.record.failure is None, there.record.failure
    assert there.record.status == here.record.status == "ok"
    assert there.record.provenance.device.startswith("cuda")
    assert there.record.unverified == here.record.unverified
    assert there.outcomes is not None
    assert here.outcomes is not None
    assert there.record.counters == here.record.counters
    pd.testing.assert_frame_equal(there.outcomes, here.outcomes)
    assert {text for text in noted if text.startswith("not repeatable")} <= EXACT


def _refused(name: str) -> str:
    """What the pretended device says to a mistake."""
    mistakes = {
        "mixed": lambda x: x + torch.ones(3),
        "written": lambda x: torch.ones(3).add_(x),
        "generator": lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
        "numpy": lambda x: x.numpy(),
        "index": lambda x: torch.ones(3)[x > 0],
    }
    with pretended_cuda():
        try:
            return f"not refused: {mistakes[name](torch.zeros(3, device='cuda'))}"
        except RuntimeError as error:
            return str(error)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("mixed", "same device"),
        ("written", "same device"),
        ("generator", "'cuda' device type for generator"),
        ("numpy", "numpy"),
        ("index", "same device"),
    ],
)
def test_the_pretended_device_refuses_what_cuda_refuses(mistake: str, text: str, process: ProcessPoolExecutor) -> None:
    assert text in process.submit(_refused, mistake).result()


# --- the run on a real GPU ----------------------------------------------------------------------------------------


@cache
def _why_no_gpu() -> str:
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_on_cuda_against_the_cpu(name: str, tmp_path: Path) -> None:
    if _why_no_gpu():
        pytest.skip(_why_no_gpu())
    (row,) = compare_methods(
        [name], "cuda", Where("embedded", "vit", "W8A8", 500, SHORT), budget=280, cores=4, folder=tmp_path
    )
    assert not row.wrong, row


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [2, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_the_gpu_run_rehearsed_on_the_cpu(
    number: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without synthesis, searches and learning, which take long on a CPU even if they are tiny."""
    monkeypatch.setattr("gpu.cases", lambda *arguments: cases(*arguments)[:number])
    assert main(["--device", "cpu", "--methods", "noise+minmax"]) == 0
    text = capsys.readouterr().out
    assert "noise+minmax" in text
    assert all(case.what in text for case in cases(2, 2)[:number])


def test_without_a_gpu_the_run_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 4
    assert "--device cpu" in capsys.readouterr().out


def test_results_are_compared_image_by_image(tmp_path: Path) -> None:
    found = _measure("noise+minmax", "vit", "cpu", tmp_path)
    assert compared("m", found, found, found).verdict == "same"
    assert compared("m", found, None, None).verdict == ""
    assert found.outcomes is not None

    def flipped(count: int) -> Measured:
        other = found.outcomes.copy()
        other.loc[: count - 1, "prediction"] = -1
        return Measured(found.record, other)

    assert compared("m", found, flipped(2), flipped(2)).verdict == "close"
    assert compared("m", found, flipped(30), flipped(30)).wrong
    assert compared("m", found, flipped(2), flipped(3)).verdict.startswith("NOT REPEATABLE")


def test_what_there_was_no_time_for_stands_in_the_tables() -> None:
    console = Console(width=140, record=True)
    console.print(methods_table([Compared("psaq+minmax", "")], "cuda"))
    case = Case("evaluation, float", "float", {}, "evaluate", "images", lambda _: 0, 50_000)
    console.print(throughput_table([Timed(case, "no time"), Timed(case, "", 2.0, 1000, 512.0)], "t"))
    text = console.export_text()
    assert text.count("no time") == 2
    assert "500.0" in text  # images per second
    assert "1.7" in text  # minutes for the whole of ImageNet's


def test_a_part_whose_time_is_over_measures_nothing(tmp_path: Path) -> None:
    where = Where("tiny", "vit", "W8A8", None, TINY)
    rows = list(compare_methods(["noise+minmax"], "cpu", where, budget=0.0, cores=1, folder=tmp_path))
    assert [row.verdict for row in rows] == [""]
