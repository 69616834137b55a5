"""Executors by name."""

from __future__ import annotations

from dataclasses import replace

from harness.api.errors import UsageError
from harness.api.plugins import ExecutorInfo
from harness.catalog.registry import Registry
from harness.run.executors.base import Executor, Resources
from harness.run.machine import shares
from harness.run.runner import Settings

WORKER = ExecutorInfo(
    name="worker",
    summary="cells in processes of their own, which may crash, hang or be killed without harm; --jobs at a time",
    target="harness.run.executors.jobs:Jobs",
    accepts=("timeout", "jobs"),
)
IN_PROCESS = ExecutorInfo(
    name="in-process",
    summary="one cell at a time in this process, for debugging",
    target="harness.run.executors.in_process:InProcess",
)
RAY = ExecutorInfo(
    name="ray",
    summary="cells on the nodes of a Ray cluster, one at a time on each host; needs package ray",
    target="harness.run.executors.ray_cluster:RayCluster",
    accepts=("timeout", "jobs", "address", "cpus", "gpus", "wait"),
)
SLURM = ExecutorInfo(
    name="slurm",
    summary="cells as jobs of a Slurm cluster that write to a shared disk; may go on without this process",
    target="harness.run.executors.slurm.executor:SlurmExecutor",
    accepts=("timeout", "jobs", "cpus", "gpus", "slurm", "detach"),
)
_BUILTIN = {
    WORKER.name: f"{__name__}:WORKER",
    IN_PROCESS.name: f"{__name__}:IN_PROCESS",
    RAY.name: f"{__name__}:RAY",
    SLURM.name: f"{__name__}:SLURM",
}


def executors() -> Registry[ExecutorInfo]:
    """All executors, the project's own and those of installed packages."""
    return Registry("executor", _BUILTIN, "dfqbench.executors", ExecutorInfo)


HERE = (WORKER.name, IN_PROCESS.name)  # run cells on this machine


def find_executor(name: str, resources: Resources | None = None) -> ExecutorInfo:
    """The executor called `name`.

    Raises:
        UsageError: there is none, it cannot be used, or it does not understand what the user says in `resources`.
    """
    registry = executors()
    info: ExecutorInfo = registry.get(name)
    for said in (resources or Resources()).said:
        if said not in info.accepts:
            known = [other for other in _BUILTIN if said in registry.get(other).accepts]
            raise UsageError(
                f"--{said}: executor '{name}' has no use for it; leave it out{' or use --executor ' * bool(known)}"
                f"{' or '.join(known)}"
            )
    return info


def open_executor(name: str, settings: Settings, resources: Resources | None = None) -> Executor:
    """The executor called `name`, ready to run cells; the caller closes it.

    Raises:
        UsageError: as `find_executor`, or its code cannot be imported.
    """
    resources = resources or Resources()
    executor: Executor = find_executor(name, resources).load()(settings, resources)
    return executor


def divided(name: str, device: str, resources: Resources, threads: int | None) -> tuple[Resources, int, str]:
    """What the user leaves open of the division of this machine, filled in: resources, threads of each cell and one
    sentence about them. Executors elsewhere have their own division; their cells have as many threads as a host's CPUs.

    Raises:
        UsageError: what the user says of hosts elsewhere contradicts itself.
    """
    if name == WORKER.name:
        found = shares(device, resources.jobs, threads)
        return replace(resources, jobs=found.jobs), found.threads, found.text
    if name == IN_PROCESS.name:
        found = shares(device, 1, threads)
        return resources, found.threads, found.text
    cpus, gpus = resources.cpus, resources.gpus
    if threads and cpus and threads > cpus:  # a thread more than CPUs only takes turns
        raise UsageError(
            f"--threads {threads} and --cpus {cpus} contradict each other; give no more threads than CPUs, or leave "
            "--threads out"
        )
    if gpus and device == "cpu":
        raise UsageError(f"--device cpu and --gpus {gpus:g} contradict each other; leave one out")
    threads = threads or cpus or 1
    return resources, threads, f"Executor {name}: each cell with {threads} thread{'s' * (threads > 1)}."
