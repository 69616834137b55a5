"""Does it pay to run cells side by side? nox -s perf -- --only jobs, or python tests/perf/jobs.py [ARGUMENTS OF bench].

Runs one sweep (the README's with one seed if nothing is said) three times, each in a process with folders of its own:
several jobs with one thread each, one job with all cores as threads, and one job with one thread. Wall time counts,
reports and all.
What several jobs measured must be what one job with as many threads measured, record by record.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.results.store import Store
from harness.run.machine import usable_cores

SWEEP = ("--methods", "clamp,psaq", "--seeds", "1")


def timed(folder: Path, jobs: int, threads: int, arguments: tuple[str, ...]) -> float:
    """Seconds of the sweep into `folder`."""
    division = ("--jobs", str(jobs), "--threads", str(threads))
    folders = ("--out", str(folder / "out"), "--cache", str(folder / "cache"))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "harness", "bench", *arguments, *division, *folders], check=True)
    return time.perf_counter() - began


def different(one: Store, other: Store) -> list[str]:
    """Keys of cells that the two do not say the same of."""
    ours, theirs = ({record.key: record for record in store.records()} for store in (one, other))
    both = ours.keys() & theirs.keys()
    return sorted(ours.keys() ^ theirs.keys()) + [key for key in both if not one.agrees(ours[key], theirs[key], other)]


def measured(arguments: tuple[str, ...] = SWEEP) -> list[tuple[str, float, float, float]]:
    """What is compared, seconds of several jobs, seconds of one job, and how many times faster several are.

    Raises:
        SystemExit: several jobs measured something else than one.
    """
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = timed(folder / "many", cores, 1, arguments)
        wide = timed(folder / "wide", 1, cores, arguments)
        single = timed(folder / "single", 1, 1, arguments)
        wrong = different(Store(folder / "many/out"), Store(folder / "single/out"))
    if wrong:
        raise SystemExit(f"{cores} jobs and one job with one thread each measured {len(wrong)} cells differently")
    return [
        (f"{cores} jobs against one with {cores} threads", many, wide, wide / many),
        (f"{cores} jobs against one with 1 thread", many, single, single / many),
    ]


if __name__ == "__main__":
    for what, many, one, ratio in measured(tuple(sys.argv[1:]) or SWEEP):
        sys.stdout.write(f"{what}: {many:.0f} s against {one:.0f} s, {ratio:.2f} times faster\n")
