"""The Slurm that tests start."""

from __future__ import annotations

import cluster
import pytest

pytestmark = pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing())


def test_both_nodes_run_jobs(tmp_path):
    with cluster.Cluster(tmp_path / "slurm") as slurm:
        said = slurm.run("srun", "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME")
    assert sorted(said.split()) == list(cluster.NODES)
