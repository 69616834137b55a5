"""`bench --executor slurm` on a real Slurm of two nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cluster
import pytest
from toy_sweep import TOY, TWO

from harness.results.store import Store

pytest.importorskip("submitit")
pytestmark = [pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing()), pytest.mark.slow]
PLUGINS = Path(__file__).resolve().parents[1] / "harness" / "plugins"
LIMIT = 240  # seconds that a command may take on a busy machine


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("slurm") / "files") as started:
        started.environment["PYTHONPATH"] = ":".join([str(PLUGINS), *(path for path in sys.path if path)])
        yield started


@pytest.fixture
def bench(slurm, tmp_path):
    def run(*arguments: str, command: str = "bench", code: int = 0) -> subprocess.CompletedProcess[str]:
        said = subprocess.run(
            [sys.executable, "-m", "harness", command, *arguments],
            env=slurm.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert said.returncode == code, f"{said.stdout}\n{said.stderr}\n{slurm.logs()}"
        return said

    return run


def test_two_hosts_give_the_results_of_this_process(bench, slurm, tmp_path):
    on_slurm = (*TWO, "--executor", "slurm", "--jobs", "2", "--out", "there")
    assert "goes on alone" in bench(*on_slurm, "--detach").stdout
    assert "is at work on" in bench(*on_slurm).stderr
    bench(*TWO, "--in-process", "--threads", "1", "--out", "here")
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    records = {record.key: record for record in there.records()}
    assert len(records) == 6
    assert all(here.agrees(record, records[record.key], there) for record in here.records())
    assert "6 done; all cells have ended" in bench("there", "--once", command="watch").stdout


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("partition=nowhere", "invalid partition specified: nowhere"),
        ("nonsense=1", "unrecognized option '--nonsense=1'"),
        ("time=99:00:00", "would never start (Slurm says PartitionTimeLimit) and is cancelled"),
    ],
)
def test_what_slurm_refuses_is_one_sentence(bench, asked, said):
    lines = bench(*TWO, "--executor", "slurm", "--slurm", asked, "--jobs", "2", code=2).stderr.splitlines()
    assert sum(line.startswith("Error: ") for line in lines) == 1
    assert said in lines[-1]


def test_a_preempted_host_gives_its_cell_back(bench, slurm, tmp_path):
    """A cell that hangs is running when a more urgent job takes the node; it waits again and has lost no host."""
    hangs = (*TOY, "--methods", "toyhang", "--models", "tiny")
    hanging = tmp_path / "hanging"
    slurm.environment["TOY_HANG"] = str(hanging)
    bench(*hangs, "--bits", "W4A8", "--executor", "slurm", "--jobs", "1", "--detach", "--out", "there")
    (queue,) = (tmp_path / "there" / "queue").iterdir()
    slurm.wait_until(hanging.exists, LIMIT)
    for _ in cluster.NODES:
        slurm.run("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap", "sleep 600")
    slurm.wait_until(lambda: not any((queue / "running").iterdir()), LIMIT)
    (token,) = (queue / "waiting").iterdir()
    assert token.read_text() == "[]"
    slurm.wait_until(lambda: "PENDING" in slurm.run("squeue", "-h", "-n", queue.name, "-o", "%T"), LIMIT)
    slurm.run("scancel", "--me")
