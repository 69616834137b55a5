"""Kills of a running sweep at random moments: nothing that was measured may be lost, changed or measured again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from processes import children, workers

from harness.results.store import Store

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "harness" / "plugins"
SEEDS_PER_KILL = 2  # more for every start; the toy plugin is foreign code, so each cell has a new worker
BITS = "W4A8"
MOST_JOBS = 3  # at a time; each start has another number
LATEST = 5.0  # seconds after the start; importing torch takes about two of them


def kill_often(folder: Path, kills: int, seed: int) -> int:
    """Kill a sweep `kills` times, then let it end.

    Returns:
        How many things went wrong; each is printed.
    """
    folder.mkdir(parents=True)
    rng, wrong = Random(seed), 0
    kept: dict[Path, bytes] = {}
    whom: dict[str, int] = {"sweep": 0, "worker": 0, "server": 0, "all": 0}
    for number in range(kills):
        process = _start(folder, SEEDS_PER_KILL * (number + 1), jobs=1 + number % MOST_JOBS)
        time.sleep(rng.uniform(0.0, LATEST))
        victim = rng.choice(sorted(whom))
        whom[victim] += _kill(process, victim)
        process.wait(120)
        wrong += _compare(folder, kept, f"after kill {number}")
    process = _start(folder, SEEDS_PER_KILL * kills, jobs=MOST_JOBS)
    code = process.wait(3600)
    wrong += _compare(folder, kept, "at the end")
    records = Store(folder).records()
    expected = 1 + len(BITS.split(",")) * SEEDS_PER_KILL * kills
    failed = [record.failure.type for record in records if record.failure is not None]
    if len(records) != expected or code not in (0, 3) or set(failed) - {"WorkerDied"}:
        wrong += 1
        print(f"{len(records)} of {expected} cells at the end, exit code {code}, failures {failed}")
    leftovers = [path for path in folder.iterdir() if path.name.startswith(".")]
    print(f"{sum(whom.values())} kills ({whom}), {len(records)} cells, {len(leftovers)} temporary files, {wrong} wrong")
    return wrong + len(leftovers)


def _start(folder: Path, seeds: int, jobs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness", "bench", "--suite", "toy", "--tasks", "toy", "--models", "tiny"]
    command += ["--methods", "toynoise", "--bits", BITS, "--no-references", "--threads", "1", "--jobs", str(jobs)]
    command += ["--seeds", str(seeds), "--out", str(folder), "--cache", str(folder.parent / "cache")]
    path = os.pathsep.join([str(ROOT), str(PLUGINS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _kill(process: subprocess.Popen[bytes], victim: str) -> int:
    """Kill the sweep, its workers, what starts them, or all; 1 if there was one to kill."""
    servers, measuring = children([process.pid]), workers([process.pid])
    targets = {
        "sweep": [process.pid],
        "worker": measuring,
        "server": servers,
        "all": [process.pid, *servers, *measuring],
    }[victim]
    for pid in targets:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if victim in ("worker", "server"):  # the sweep goes on with new ones; it is stopped for the next round
        time.sleep(0.5)
        process.kill()
    return int(bool(targets))


def _compare(folder: Path, kept: dict[Path, bytes], when: str) -> int:
    """Records of results that were there before must be there unchanged; take in those that are new."""
    wrong = 0
    for path, content in kept.items():
        if not path.exists() or path.read_bytes() != content:
            wrong += 1
            print(f"{when}: {path.name} was lost or measured again")
    store = Store(folder)
    for record in store.records():
        path = folder / f"{record.key}.json"
        if record.status == "ok" and store.complete(record):
            kept.setdefault(path, path.read_bytes())
    return wrong
