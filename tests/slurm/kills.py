"""Kills whatever a sweep on Slurm consists of, at random, and looks at what came of it.

    python tests/slurm/kills.py --kills 20 --seed 1 --out FOLDER

Workers, hosts, jobs, nodes and the driver are killed while cells run on two nodes. In the end each cell must have one
result, the same as without Slurm, and only cells that were running when something was killed may have been begun twice.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import NODES, Cluster, missing
from processes import workers

from harness.results.store import Store
from harness.run.executors.slurm.queue import Beat, queues

WHAT = ("worker", "host", "job", "node", "driver")
_SWEEP = ("--methods", "noise+percentile,noise+ema", "--bits", "W8A8,W4A8", "--seeds", "2")
_SWEEP += ("--limit", "100", "--preset", "quick")


class Sweep:
    """The same sweep again and again, until all cells have a result."""

    def __init__(self, out: Path, cluster: Cluster | None) -> None:
        self.out = out
        self.cluster = cluster
        self.driver: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start the driver."""
        common = ("--device", "cpu", "--threads", "1", "--out", str(self.out), "--cache", f"{self.out}-cache")
        where = ("--executor", "slurm", "--jobs", "2") if self.cluster else ("--jobs", "1")
        command = [sys.executable, "-m", "harness", "bench", *_SWEEP, *common, *where]
        environment = self.cluster.environment if self.cluster else None
        self.starts += 1
        with Path(f"{self.out}.log").open("ab") as log:
            self.driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def running(self) -> list[Beat]:
        """Hosts that measure a cell now."""
        beats = [beat for queue in queues(self.out) for beat in queue.beats()]
        return [beat for beat in beats if beat.key and not beat.left]


def kill(what: str, sweep: Sweep, chosen: Beat) -> str:
    """Kill something of the sweep; returns what."""
    cluster, driver = sweep.cluster, sweep.driver
    assert cluster is not None
    assert driver is not None
    if what == "driver":
        driver.kill()
        driver.wait()
        return "driver"
    if what == "node":
        cluster.kill_node(chosen.node)
        return f"node {chosen.node}"
    if what == "job":
        cluster.run("scancel", chosen.job)
        return f"job {chosen.job} (scancel)"
    victim = chosen.pid if what == "host" else workers([chosen.pid])[0]
    os.kill(victim, signal.SIGKILL)
    return f"{what} of job {chosen.job}"


class Chaos:
    """Kills at random, and helps the cluster up again."""

    def __init__(self, sweep: Sweep, kills: int, kinds: list[str], seed: int) -> None:
        self.sweep = sweep
        self.kills = kills
        self.kinds = kinds
        self.rng = random.Random(seed)
        self.done: list[str] = []
        self.logs: dict[Path, str] = {}
        self._down: dict[str, float] = {}  # node -> since when
        self._due = time.monotonic() + 25

    def run(self) -> None:
        """Until all cells have a result."""
        self.sweep.start()
        while True:
            time.sleep(0.5)
            for queue in queues(self.sweep.out):
                self.logs |= {path: path.read_text() for path in (queue.folder / "jobs").glob("*_log.out")}
            self._help_up()
            assert self.sweep.driver is not None
            code = self.sweep.driver.poll()
            if code == 0:
                return
            if code is not None:
                say(f"driver ended with {code}")
                self.sweep.start()
                self._due = max(self._due, time.monotonic() + 8)
            running = [beat for beat in self.sweep.running() if beat.node not in self._down]
            if len(self.done) < self.kills and time.monotonic() > self._due and running:
                self._kill(self.rng.choice(running))

    def _help_up(self) -> None:
        cluster = self.sweep.cluster
        assert cluster is not None
        for node, since in list(self._down.items()):
            if time.monotonic() - since > 15:
                cluster.start_node(node)
                del self._down[node]
        for line in cluster.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r", check=False).splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":  # jobs that are queued again wait for two minutes
                cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def _kill(self, chosen: Beat) -> None:
        what = self.kinds[len(self.done) % len(self.kinds)]
        try:
            text = kill(what, self.sweep, chosen)
        except (OSError, StopIteration) as error:
            say(f"missed {what}: {error!r}")
            return
        if what == "node":
            self._down[chosen.node] = time.monotonic()
        self.done.append(what)
        say(f"{len(self.done)}. killed {text}, {chosen.key[:12]} after {chosen.seconds:.0f} s")
        self._due = time.monotonic() + self.rng.uniform(1.0, 14.0)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--what", default=",".join(WHAT))
    arguments = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with Cluster(out / "slurm") as cluster:
        chaos = Chaos(Sweep(out / "there", cluster), arguments.kills, arguments.what.split(","), arguments.seed)
        chaos.run()
    judge(chaos)


def judge(chaos: Chaos) -> None:
    """Compare with the same sweep without Slurm, and count how often cells were begun and ended."""
    sweep, logs, done = chaos.sweep, chaos.logs, chaos.done
    here = Sweep(sweep.out.with_name("here"), None)
    here.start()
    assert here.driver is not None
    here.driver.wait()
    one, other = Store(here.out), Store(sweep.out)
    records = {record.key: record for record in one.records()}
    others = {record.key: record for record in other.records()}
    say(f"kills: {dict(Counter(done))}; drivers started {sweep.starts} times; nodes {', '.join(NODES)}")
    say(f"cells {len(records)}, with Slurm {len(others)}, equal keys: {set(records) == set(others)}")
    say(f"equal outcomes: {sum(one.agrees(records[key], others[key], other) for key in records if key in others)}")
    begun = Counter(re.findall(r" ([0-9a-f]{12}) .*: begins", "\n".join(logs.values())))
    ended = Counter(re.findall(r" ([0-9a-f]{12}) .*: (?:ok|failed|skipped) after", "\n".join(logs.values())))
    say(f"begun {sum(begun.values())} times, ended {sum(ended.values())}")
    lost = sum(begun.values()) - sum(ended.values())
    kills = sum(what in ("host", "job", "node") for what in done)
    say(f"begun and lost: {lost}, by {kills} kills of hosts, jobs and nodes")
    good = Counter(re.findall(r" ([0-9a-f]{12}) .*: (?:ok|skipped) after", "\n".join(logs.values())))
    say(f"measured well oftener than once: { {key: number for key, number in good.items() if number > 1} }")
    warned = [record for record in others.values() if any(n.category == "HostLost" for n in record.warnings or ())]
    say(f"records that say that their host was lost: {len(warned)}")


def say(text: str) -> None:
    """A line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
