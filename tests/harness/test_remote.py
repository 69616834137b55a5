"""What hosts on other machines are asked, and what they take over."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.results.provenance import processor_of
from harness.run.executors.ray_host import Host
from harness.run.executors.remote import SHARED, Mark, adopt, enter, look, machine, marked, objection, one_of_each
from harness.run.executors.worker import WorkerProcess


def test_a_machine_that_sees_the_folder_of_images_shares_them(settings, toy_cell):
    cell = toy_cell()
    with marked(settings.cache) as mark:
        here = look(settings, [cell], mark, "node 1")
        assert here.domain == SHARED
        # Another folder of the same name, or what a driver that is gone has left.
        there = look(settings, [cell], replace(mark, text="of another"), "node 1")
        assert there.domain == "node 1"
    assert not any(settings.cache.iterdir())
    assert here.codes == (code_for(settings.catalog, cell),)
    assert objection(here, here.codes) == ""


def test_a_machine_without_the_folder_of_images_makes_it(settings, toy_cell, tmp_path):
    elsewhere = replace(settings, cache=tmp_path / "a" / "cache")
    facts = look(elsewhere, [toy_cell()], Mark(tmp_path / "none", "text"), "node 1")
    assert (facts.fault, facts.domain) == ("", "node 1")
    assert elsewhere.cache.is_dir()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data_root": Path("/no/such/folder")}, "it has no folder /no/such/folder (--data-root)"),
        ({"cache": Path("/dev/null/cache")}, "cannot write to folder /dev/null/cache"),
    ],
)
def test_what_keeps_a_machine_from_measuring(settings, toy_cell, tmp_path, changes, fault):
    facts = look(replace(settings, **changes), [toy_cell()], Mark(tmp_path / "none", "text"), "node 1")
    assert facts.fault.startswith(fault)
    assert objection(facts, ()) == facts.fault


def test_a_plugin_that_a_machine_does_not_have_is_a_fault(settings, toy_cell, tmp_path, monkeypatch):
    def missing(*_):
        raise UsageError("unknown method 'toynoise'")

    monkeypatch.setattr("harness.run.executors.remote.code_for", missing)
    facts = look(settings, [toy_cell()], Mark(tmp_path / "none", "text"), "node 1")
    assert facts.fault == "unknown method 'toynoise'"


def test_variables_that_choose_rounding_are_those_of_the_machine_that_plans():
    here = {"MKL_CBWR": "COMPATIBLE", "CUDA_VISIBLE_DEVICES": "7"}
    there = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/home/me"}
    adopt(here, there)
    assert there == {"MKL_CBWR": "COMPATIBLE", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/home/me"}


def test_a_folder_that_is_not_there_is_not_entered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "none")
    assert Path.cwd() == tmp_path


def test_a_host_on_a_part_of_a_gpu_takes_its_share_of_the_memory(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    Host(settings, None, {}, tmp_path, 0.25)
    asked = os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    assert asked == "expandable_segments:True,per_process_memory_fraction:0.25"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_worker_that_is_started_early_says_what_computes_or_what_is_wrong(settings, toy_cell):
    worker = WorkerProcess(settings)
    try:
        assert worker.start() == processor_of(torch.device("cpu"))
        assert worker.measure(toy_cell(), lambda *_: None).record.status == "ok"
    finally:
        worker.close()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"RuntimeError|AssertionError"):
            WorkerProcess(replace(settings, device="cuda")).start()


def test_cells_of_one_method_have_the_same_code(toy_cell):
    cells = [toy_cell(seed=seed) for seed in range(3)] + [toy_cell("float")]
    assert one_of_each(cells) == (cells[2], cells[3])


def test_machines_in_words():
    assert machine({"device": "cpu", "processor": "A CPU", "instructions": "AVX2"}) == "A CPU with AVX2"
    assert machine({"device": "cuda", "gpu": "A GPU"}) == "A GPU"
