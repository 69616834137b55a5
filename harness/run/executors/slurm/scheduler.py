"""Jobs: how they are submitted, seen and cancelled; on Slurm, or as processes of this machine that behave like jobs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.api.errors import UsageError, first_line
from harness.io.files import is_alive

if TYPE_CHECKING:
    from harness.run.executors.slurm.queue import Header

CLUSTERS = ("slurm", "local")
# What this program says itself; and what would start several processes that measure the same.
_OURS = ("array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal")
# What --cpus and --gpus say, in sbatch's words: of one task on one node, these mean the same.
_OF_HOSTS = {"cpus-per-task": "--cpus", "gpus": "--gpus", "gpus-per-node": "--gpus", "gpus-per-task": "--gpus"}
# How sbatch is asked for GPUs in its own words; `gpu-bind` and a partition called `gpu` ask for none.
_GPUS = re.compile(r"gpus(-per-\w+)?=|(gres|tres-per-\w+)=(.*,)?(gres[/:])?gpu\b")
_OVER = ("COMPLETED", "COMPLETING", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
# Reasons that do not pass by waiting.
_NEVER = re.compile(
    r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|Invalid\w*|JobHeld\w+|AssocMaxWall\w*|QOSMaxWall\w*|\w+MaxTRESPerJob|ReqNodeNotAvail.*"
)
_PATIENCE = 60  # seconds that a command of Slurm may take
_LOCAL_MINUTES = 24 * 60


@dataclass(frozen=True)
class Job:
    """One job of an array: its id, state and the reason that the scheduler gives for that."""

    name: str
    state: str
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in _OVER or self.state.startswith("CANCELLED")

    @property
    def hopeless(self) -> bool:
        """Whether it waits for what never comes."""
        return self.state == "PENDING" and _NEVER.fullmatch(self.reason) is not None


class Scheduler(Protocol):
    """Where hosts are submitted to."""

    def submit(self, folder: Path, host: Callable[[], object], number: int, name: str) -> tuple[str, ...]:
        """Submit `number` jobs that call `host`; their scripts and logs are in `folder`. Returns ids for reading.

        Raises:
            UsageError: they are refused.
        """


class Slurm:
    """`sbatch`, written by submitit, `squeue` and `scancel`.

    Args:
        asked: Options of sbatch, by their long names.
        cpus: Of each host.
        gpus: Of each host.

    Raises:
        UsageError: it is not for `--slurm` to say, Slurm cannot give it, or there is no Slurm here.
    """

    def __init__(self, asked: Mapping[str, str], cpus: int, gpus: float | None) -> None:
        for name, value in asked.items():
            if name in _OURS:
                raise UsageError(
                    f"--slurm {name}=...: dfqbench says this itself; leave it out (--jobs, --cpus, --gpus)"
                )
            if name in _OF_HOSTS and value.isdecimal():  # a kind of GPU, `gpus=h200:2`, only Slurm's own words can say
                raise UsageError(f"--slurm {name}={value}: say it with {_OF_HOSTS[name]}, and leave it out here")
            if gpus is not None and _GPUS.match(f"{name}={value}"):
                raise UsageError(f"--gpus {gpus:g} and --slurm {name}={value} both ask for GPUs; leave one out")
        if gpus is not None and gpus != int(gpus):
            raise UsageError(f"--gpus {gpus:g}: Slurm gives whole GPUs; ask for shares with --slurm gres=shard:1")
        for command in ("sbatch", "squeue", "scancel", "srun"):
            if shutil.which(command) is None:
                raise UsageError(
                    f"--executor slurm: there is no {command} on this machine's PATH; run it on a login node"
                )
        if "time" in asked:
            seconds_of(asked["time"])
        self._cpus = cpus
        self._asked = {**asked, "cpus-per-task": str(cpus)}
        if gpus:
            self._asked["gpus-per-node"] = str(int(gpus))

    def submit(self, folder: Path, host: Callable[[], object], number: int, name: str) -> tuple[str, ...]:
        """An array of jobs."""
        submitit = _submitit()
        executor = submitit.SlurmExecutor(folder)
        # Hosts know how much time they have; the signal that submitit has Slurm send before the end is ignored.
        more = {**self._asked, "requeue": True}
        executor.update_parameters(
            job_name=name, time=None, array_parallelism=number, signal_delay_s=1, additional_parameters=more
        )
        # srun does not take this from its job since Slurm 22.05.
        executor.update_parameters(srun_args=[f"--cpus-per-task={self._cpus}"])
        try:
            # submitit shows what sbatch says as well.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [executor.submit(host) for _ in range(number)]
        except (OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
            said = re.findall(r"sbatch: (?:error: )?(.+)", str(error)) or [first_line(error)]
            text = "; ".join(dict.fromkeys(line.strip() for line in said))
            raise UsageError(f"Slurm refuses the job ({text}); change what --slurm asks for") from None
        return tuple(str(job.job_id) for job in jobs)


class Local:
    """submitit's jobs on this machine, where there is no Slurm: for trying things out. Nothing is reserved for them.

    Raises:
        UsageError: something is asked for that would have no effect.
    """

    def __init__(self, asked: Mapping[str, str], cpus: int | None, gpus: float | None, threads: int) -> None:
        if set(asked) - {"time"}:
            raise UsageError(f"--slurm {min(set(asked) - {'time'})}=...: cluster=local knows only time; leave it out")
        if gpus is not None:
            raise UsageError(f"--gpus {gpus:g}: --slurm cluster=local reserves no GPUs; leave it out")
        if cpus is not None and cpus != threads:  # else it is what says the threads
            raise UsageError(
                f"--cpus {cpus}: --slurm cluster=local reserves no CPUs, and --threads {threads} is all that each cell "
                "takes; leave it out"
            )
        self._minutes = ceil(seconds_of(asked["time"]) / 60) if "time" in asked else _LOCAL_MINUTES

    def submit(self, folder: Path, host: Callable[[], object], number: int, name: str) -> tuple[str, ...]:
        """Processes."""
        executor = _submitit().AutoExecutor(folder, cluster="local")
        executor.update_parameters(timeout_min=self._minutes)
        return tuple(str(executor.submit(host).job_id) for _ in range(number))


def jobs_of(header: Header) -> list[Job] | None:
    """The jobs of a queue that are not forgotten yet; None if Slurm does not answer now.

    One call of squeue. Jobs are found by their name, so that those of a driver that was killed are found as well.
    """
    if header.cluster == "local":  # there a job's id is the number of its process
        return [Job(job, "RUNNING") for job in header.jobs if is_alive(int(job)) and not _is_zombie(int(job))]
    try:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--name={header.name}", "--format=%i|%T|%r"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.split("|", 2) for line in done.stdout.splitlines())
    return [Job(*(field.strip() for field in fields)) for fields in lines if len(fields) == 3]


def cancel(header: Header) -> None:
    """End the jobs of a queue."""
    with suppress(OSError, subprocess.SubprocessError):
        if header.cluster == "local":  # the process that watches over a host passes the signal on
            for job in jobs_of(header) or ():
                os.kill(int(job.name), signal.SIGTERM)
        else:
            command = ["scancel", f"--name={header.name}"]
            subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)


def scheduler(
    asked: Mapping[str, str], cpus: int | None = None, gpus: float | None = None, threads: int = 1
) -> Scheduler:
    """What `--slurm` asks for; `cluster` is slurm, if left out, or local. Hosts have as many CPUs as `threads`, if
    `cpus` does not say how many.

    Raises:
        UsageError: it cannot be.
    """
    rest = dict(asked)
    cluster = rest.pop("cluster", CLUSTERS[0])
    if cluster not in CLUSTERS:
        raise UsageError(f"--slurm cluster={cluster}: it is {' or '.join(CLUSTERS)}")
    return Local(rest, cpus, gpus, threads) if cluster == "local" else Slurm(rest, cpus or threads, gpus)


def time_left(job: str) -> float:
    """Seconds that Slurm gives this job now; infinite if it has no limit, or none that can be found out."""
    try:
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%L"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE)
        return seconds_of(done.stdout.strip())
    except (OSError, subprocess.SubprocessError, UsageError):
        return inf


def requeue(job: str) -> bool:
    """Put this job back into Slurm's queue, to go on later."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["scontrol", "requeue", job]
        return subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE).returncode == 0
    return False


def seconds_of(text: str) -> float:
    """Seconds of a time as Slurm writes it: minutes, MM:SS, HH:MM:SS, or days and what of that: D-HH:MM.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UsageError(f"--slurm time={text}: write it as Slurm does, for example 02:00:00 or 1-12")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UsageError("--executor slurm needs submitit: pip install 'dfqbench[slurm]'") from None
    return submitit
