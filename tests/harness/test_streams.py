"""Output that nobody reads, that does not fit, or that the console cannot show; in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from toy_sweep import TOY

from harness.results.store import Store

PLUGINS = Path(__file__).parent / "plugins"
ROOT = Path(__file__).parents[2]
HARNESS = f'"{sys.executable}" -m harness'
BENCH = f"{HARNESS} bench {' '.join(TOY)} --models tiny --bits W4A8 --threads 1 --in-process"
FULL = Path("/dev/full")


def shell(command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join([str(ROOT), str(PLUGINS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = f"set -o pipefail; {command}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, timeout=120, check=False
    )


def installed(command: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """As `shell`, but without this environment's editable installation, which finds the project's modules anyway."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return shell(f'"{sys.executable}" -S -m harness {command}', cwd, PYTHONPATH=path)


def measured(folder: Path) -> int:
    return sum(record.status == "ok" for record in Store(folder / "results/runs/toy").records())


@pytest.mark.slow
def test_k3_a_console_with_a_narrow_encoding_prints_what_it_can(tmp_path):
    """FAULTS K3: `PYTHONIOENCODING=cp1252 ... bench ... > log` ended in a UnicodeEncodeError, exit 70."""
    done = shell(f"{BENCH} --methods toynoise > log", tmp_path, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert "?" in (tmp_path / "log").read_text("cp1252")  # the Greek letter of a column
    assert measured(tmp_path) == 2


@pytest.mark.slow
def test_k5_a_closed_pipe_costs_no_result_and_is_no_regression(tmp_path):
    """FAULTS K5: `bench ... | head -1` ended with 1, an accuracy regression, and 0 records."""
    done = shell(f"{BENCH} --methods toynoise | head -1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert measured(tmp_path) == 2


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_k5_a_full_disk_behind_the_output_costs_no_result(tmp_path):
    """FAULTS K5: `bench > /dev/full` ended in a traceback, exit 70."""
    done = shell(f"{BENCH} --methods toynoise > {FULL}", tmp_path)
    assert done.returncode == 74
    assert done.stderr.startswith(b"Error: part of the output could not be written")
    assert len(done.stderr.splitlines()) == 1
    assert measured(tmp_path) == 2


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_what_was_only_to_be_printed_fails_where_it_cannot_be(tmp_path):
    assert shell(f"{HARNESS} list tasks > {FULL}", tmp_path).returncode == 74
    assert shell(f"{HARNESS} list tasks > {FULL} 2>&1", tmp_path).returncode == 74
    assert shell(f"{HARNESS} list nonsense > {FULL}", tmp_path).returncode == 2


@pytest.mark.slow
def test_a_closed_output_is_not_taken_by_the_next_file(tmp_path):
    done = shell(f"{BENCH} --methods toynoise >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert measured(tmp_path) == 2


@pytest.mark.slow
def test_a_method_that_prints_may_do_so_into_a_closed_pipe(tmp_path):
    """Also in a worker process, which writes to the same pipe."""
    command = BENCH.replace(" --in-process", "")
    done = shell(f"{command} --methods toyprint | true", tmp_path)
    assert done.returncode == 0, done.stderr
    assert measured(tmp_path) == 2


@pytest.mark.parametrize("variables", [{"COLUMNS": "1"}, {"COLUMNS": "x"}, {"TERM": "dumb"}, {"LC_ALL": "xx_XX"}])
def test_odd_terminals(tmp_path, variables):
    done = shell(f"{HARNESS} list tasks", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_k3_a_foreign_package_of_the_same_name(tmp_path):
    """FAULTS K3: a folder `tasks/` of somebody else's in the working directory ended in a traceback."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    done = installed("list tasks", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "hides dfqbench's own package 'tasks'" in line


def test_a_foreign_module_of_the_same_name(tmp_path):
    (tmp_path / "methods.py").touch()
    done = installed("list methods", tmp_path)
    assert done.returncode == 2
    assert b"hides dfqbench's own package 'methods'" in done.stderr
