from __future__ import annotations

import dataclasses
import importlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.api.errors import DataFreeViolation
from harness.api.sealing import check_not_sealed, sealed_data
from harness.run.executors.worker import WorkerProcess
from harness.run.runner import CellRunner


def quiet(text: str, fraction: float) -> None:
    pass


def test_a_cell_end_to_end(runner, toy_cell):
    measured = runner.measure(toy_cell(), quiet)
    record = measured.record
    assert record.status == "ok", record.failure
    assert set(record.stages) >= {"load", "synthesize", "calibrate", "evaluate"}
    assert not record.stages["synthesize"].cached
    assert record.counters == {"images": 4}
    assert record.diagnostics == {"loss": {"curve": [0, 1, 2]}}
    assert record.peak_memory_mib > 0
    assert record.added_memory_mib >= 0
    assert record.quantization.weight_sites == 1
    assert record.origin == "reconstruction"
    assert len(measured.outcomes) == 40
    assert measured.images.shape == (4, 4, 4, 1)
    assert measured.images.dtype == "uint8"


def test_the_cache_changes_nothing_but_time(runner, toy_cell):
    first = runner.measure(toy_cell(), quiet)
    second = runner.measure(toy_cell(), quiet)
    assert second.record.stages["synthesize"].cached
    assert second.record.stages["synthesize"].seconds >= first.record.stages["synthesize"].seconds
    for name in ("metrics", "counters", "diagnostics", "quantization"):
        assert getattr(first.record, name) == getattr(second.record, name)
    assert (first.images == second.images).all()


def test_a_corrupt_cache_file_is_made_again(runner, settings, toy_cell):
    first = runner.measure(toy_cell(), quiet)
    (path,) = settings.cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    second = runner.measure(toy_cell(), quiet)
    assert second.record.metrics == first.record.metrics
    assert not second.record.stages["synthesize"].cached
    assert len(path.read_bytes()) > len(whole) // 2


def test_images_are_shared_between_bits_but_not_options_or_seeds(runner, settings, toy_cell):
    runner.measure(toy_cell(), quiet)
    runner.measure(toy_cell(bits="W8A8"), quiet)
    assert len(list(settings.cache.iterdir())) == 1
    runner.measure(toy_cell(seed=1), quiet)
    runner.measure(toy_cell(preset="quick"), quiet)
    assert len(list(settings.cache.iterdir())) == 3


def test_real_images_are_not_cached(runner, settings, toy_cell):
    record = runner.measure(toy_cell("toyreal"), quiet).record
    assert record.status == "ok"
    assert "images" in record.stages
    assert not list(settings.cache.iterdir())


def test_float(runner, toy_cell):
    record = runner.measure(toy_cell("float"), quiet).record
    assert record.status == "ok"
    assert record.quantization is None


def test_a_part_alone_is_quantized_where_the_scheme_names_it(runner, toy_cell, monkeypatch):
    """`full:backbone`: sites, weights and multiplications of the rest of the network stay in float, and are held to."""
    toy = importlib.import_module("dfq_toy_suite")

    class Parted(toy.Suite):
        parts = ("backbone",)

        def load(self, model, device):
            torch.manual_seed(0)
            backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 8))
            net = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(8, 5))).eval().requires_grad_(False)
            return replace(super().load(model, device), net=net.to(device), parts={"backbone": "backbone"})

    monkeypatch.setattr(toy, "open_suite", lambda suite, data_root=None: Parted())
    part, whole = (
        runner.measure(toy_cell("noise+minmax", bits="W4A4", scheme=scheme), quiet).record
        for scheme in ("full:backbone", "full")
    )
    assert part.status == whole.status == "ok", (part.failure, whole.failure)
    assert part.unverified is whole.unverified is None
    assert part.key != whole.key
    inner = ["backbone.1.weight", "backbone.3.weight"]
    assert [layer.name for layer in part.quantization.layers] == inner
    assert [layer.name for layer in whole.quantization.layers] == [*inner, "head.weight"]
    assert part.quantization.float_values == whole.quantization.float_values + 8 * 5
    assert all(site.startswith("backbone") for site in part.quantization.activation_ranges)
    assert part.quantization.activation_ranges.keys() < whole.quantization.activation_ranges.keys()
    assert part.quantization.bit_operations > whole.quantization.bit_operations  # the head counts 32 x 32 bits


def test_a_method_that_chooses_no_widths_is_skipped_in_mixed_precision(runner, toy_cell):
    record = runner.measure(toy_cell(bits="MP4.5"), quiet).record
    assert record.status == "skipped"
    assert "MP4.5 needs a method that chooses them" in record.reason


def test_a_method_that_searches_scales_of_its_own_is_skipped_in_blocks(runner, toy_cell):
    record = runner.measure(toy_cell(bits="MXFP4A8"), quiet).record
    assert record.status == "skipped"
    assert "has microscaling weights, whose scales follow from the values; minmax does that" in record.reason


def test_skip_is_recorded_with_its_reason(runner, toy_cell):
    record = runner.measure(toy_cell("toyskip"), quiet).record
    assert (record.status, record.reason) == ("skipped", "it makes no sense")


@pytest.mark.parametrize(
    ("method", "type_", "message"),
    [
        ("toyraise", "ValueError", "a toy error"),
        ("toytouch", "DataFreeViolation", "data-free method 'toytouch' touched toy calibration images"),
        ("toynan", "BadResult", "method 'toynan' gives NaN or infinite values"),
        ("toynothing", "BadResult", "quantized nothing"),
        ("toymutate", "BadResult", "changed the float model"),
        ("toytrain", "BadResult", "left the float model in train mode"),
        ("toygrad", "BadResult", "requiring gradients"),
        ("toyhook", "BadResult", "left hooks"),
    ],
)
def test_misbehaviour_fails_the_cell_and_not_the_next_one(runner, toy_cell, method, type_, message):
    before = runner.measure(toy_cell(), quiet).record.metrics
    measured = runner.measure(toy_cell(method), quiet)
    failure = measured.record.failure
    assert (measured.record.status, failure.type) == ("failed", type_)
    assert message in failure.message
    assert "Traceback" in failure.traceback
    assert measured.outcomes is None
    assert runner.measure(toy_cell(), quiet).record.metrics == before


def test_a_model_is_loaded_by_the_users_name(settings, toy_cell):
    import dfq_toy_suite

    runner = CellRunner(dataclasses.replace(settings, requested={"tiny": "there/tiny"}))
    assert runner.measure(toy_cell("float"), quiet).record.status == "ok"
    assert dfq_toy_suite.LOADED[-1] == "there/tiny"
    assert runner._loaded[1].name == "tiny"


def test_data_are_sealed_in_threads_too():
    with sealed_data("mine"), ThreadPoolExecutor() as pool, pytest.raises(DataFreeViolation, match="'mine'"):
        pool.submit(check_not_sealed, "images").result()
    check_not_sealed("images")


def test_a_model_that_cannot_be_loaded(runner, toy_cell, monkeypatch):
    monkeypatch.setenv("TOY_NO_LOAD", "tiny")
    assert runner.measure(toy_cell(), quiet).record.failure.message == "cannot load"


@pytest.mark.slow
def test_timeout_fails_the_cell(settings, toy_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_HANG", str(tmp_path / "hangs"))
    worker = WorkerProcess(settings, timeout=1)
    try:
        failure = worker.measure(toy_cell("toyhang"), lambda *_: None).record.failure
    finally:
        worker.close()
    assert (failure.type, failure.message) == ("Timeout", "took longer than 1 seconds")


def test_weights_that_changed_since_the_plan_fail_the_cell(settings, toy_cell):
    record = CellRunner(settings).measure(toy_cell(weights="those of yesterday"), lambda *_: None).record
    assert record.status == "failed"
    assert "model 'tiny' has other weights now than when the run was planned" in record.failure.message


def test_k2_how_images_are_made_ready_is_in_the_record(settings, toy_cell, monkeypatch):
    """FAULTS K2 "mean/std and crop: shown nowhere"."""
    import dfq_toy_suite

    load = dfq_toy_suite.Suite.load
    said = {"mean": [0.5], "from": "toy"}
    monkeypatch.setattr(dfq_toy_suite.Suite, "load", lambda *a: replace(load(*a), preprocessing=said))
    record = CellRunner(settings).measure(toy_cell(), lambda *_: None).record
    assert record.preprocessing == said


def test_k2_data_that_changed_since_the_plan_fail_the_cell(settings, toy_cell):
    """FAULTS K2 "contents of two class folders swapped", between planning and running."""
    record = CellRunner(settings).measure(toy_cell(data="those of yesterday"), lambda *_: None).record
    assert record.status == "failed"
    assert "suite 'toy' has other data now than when the run was planned" in record.failure.message
    record = CellRunner(settings).measure(toy_cell("toyreal", calibration="yesterday's"), lambda *_: None).record
    assert "suite 'toy' has other training images now" in record.failure.message
