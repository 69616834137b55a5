"""A real Slurm on this machine, for as long as a test needs it: Debian's daemons in a folder of their own.

Needs no systemd, no munge, no cgroups and no root: two nodes of one CPU each, both on this machine. Partition `main`
has no time limit to speak of, `short` ends jobs after a minute, and a job of partition `urgent` takes the place of one
of the others, which is queued again.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("node-a", "node-b")
DAEMONS = ("slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))  # where Debian has the daemons
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout}
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=short Nodes=ALL MaxTime=1 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=9
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    lacking = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"Slurm is not installed ({', '.join(lacking)}): apt-get install slurmctld slurmd slurm-client"
    return ""


class Cluster:
    """A Slurm whose files are in `folder`. A context manager; commands find it by `environment`."""

    def __init__(self, folder: Path, slurmd_timeout: int = 10) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
        self._slurmd_timeout = slurmd_timeout
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        text = _CONFIGURATION.format(
            host=host,
            ports=ports,
            user=getpass.getuser(),
            folder=self.folder,
            nodes=nodes,
            slurmd_timeout=self._slurmd_timeout,
        )
        (self.folder / "slurm.conf").write_text(text)
        try:
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split().count("idle") >= len(NODES), 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user", getpass.getuser(), check=False)
        with contextlib.suppress(TimeoutError):
            self.wait_until(lambda: not self.run("squeue", "-h", check=False).strip(), 10)
        for name in reversed(self._daemons):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        own = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        _kill(lambda _, environment: own in environment.split(b"\0"))

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}\n{self.logs()}")
        return done.stdout

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """A node is gone as if its power was cut: its daemon, those of its jobs, which must not tell, and the jobs."""
        self._daemons.pop(node).kill()
        sockets = (self.folder / f"spool-{node}").glob(f"{node}_*.*")  # one for each step that runs there
        titles = {f"slurmstepd: [{path.name.removeprefix(f'{node}_').partition('.')[0]}." for path in sockets}
        _kill(lambda command, _: any(command.startswith(title) for title in titles))
        mine = {f"SLURM_CONF={self.folder / 'slurm.conf'}".encode(), f"SLURMD_NODENAME={node}".encode()}
        _kill(lambda _, environment: mine <= set(environment.split(b"\0")))

    def logs(self) -> str:
        """The last that the daemons said."""
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted(self.folder.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-5:]
        )

    def wait_until(self, what: Callable[[], object], seconds: float) -> None:
        """Wait until `what()` is true.

        Raises:
            TimeoutError: it is not after `seconds`.
        """
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise TimeoutError(self.logs())
            time.sleep(0.2)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=_PATH)
        assert path is not None
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments], env=self.environment, stdout=output, stderr=output, start_new_session=True
            )


def _kill(chosen: Callable[[str, bytes], bool]) -> None:
    """Kill the processes of this machine that are chosen by their command lines and environments."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if chosen((path / "cmdline").read_bytes().decode(errors="replace"), (path / "environ").read_bytes()):
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:  # it has ended, or is another user's
            continue


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
