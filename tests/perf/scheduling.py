"""How well hosts are used, simulated: `python tests/perf/scheduling.py`, a minute on one core.

The scheduler is the real one (`harness.run.work.Work`, with what `harness.plan.estimate.Estimator` learns on the way);
hosts, time and failures are not. Durations are recorded ones: durations.csv has the seconds of 221 cells of the suites
embedded (2,000 images, preset default) and cifar10 (1,000 images, preset quick), measured one after the other with one
thread on an Intel Xeon, by suite, model, method, bits and seed: `seconds` without the synthesis of the images, `images`
that synthesis, which cells of one method, model and seed share where their images do not depend on the width.

The sweep has 10,000 cells: three models of the size 1, 4 and 12 for each of the four recorded ones (as DeiT-T, -S and
-B are to each other), on each the sources noise, real and psaq with ten calibrators and clamp, at four widths, in as
many repetitions as it takes. Calibrators are given the seconds of any recorded cell of their source and model.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the script is run by its path

from harness.identity.cell import Cell  # noqa: E402
from harness.plan.estimate import Estimator  # noqa: E402
from harness.run.work import Work  # noqa: E402

DURATIONS = Path(__file__).with_name("durations.csv")
SIZES = (1, 4, 12)
CALIBRATORS = 10
BITS = ("W8A8", "W6A6", "W4A8", "W4A4")
FEWEST = 16  # hosts with failures: with fewer, a cell that takes longer than hosts live would never end
START, LOAD, RESTART = (
    10.0,
    5.0,
    60.0,
)  # seconds until a host is ready, of loading a model, until a lost host is replaced


@dataclass(frozen=True)
class Job:
    """A cell, the seconds that it takes, and those of its images, which it shares with others of the same name."""

    cell: Cell
    seconds: float
    images: str = ""
    images_seconds: float = 0.0


def sweep(cells: int, scale: float = 1.0) -> list[Job]:
    """The first `cells` cells, model by model as a plan has them."""
    with DURATIONS.open(newline="") as file:
        recorded = list(csv.DictReader(file))
    rng = random.Random(0)
    repetition = len(BITS) * (3 * CALIBRATORS + 1)  # cells of one model in one repetition
    models = sorted({(row["suite"], row["model"], size) for row in recorded for size in SIZES})
    share = math.ceil(cells / len(models))
    jobs: list[Job] = []
    for suite, name, size in models:
        of_model = [row for row in recorded if (row["suite"], row["model"]) == (suite, name)]
        made = _of_model(of_model, f"{name}-{size}", math.ceil(share / repetition), scale * size, rng)
        jobs += islice(made, share)
    return jobs[:cells]


def _of_model(
    rows: Sequence[dict[str, str]], model: str, seeds: int, scale: float, rng: random.Random
) -> Iterator[Job]:
    own: dict[str, list[float]] = defaultdict(list)
    images: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        own[row["method"].partition("+")[0]].append(float(row["seconds"]))
        if float(row["images"]):
            images[row["method"]].append(float(row["images"]))
    suite = rows[0]["suite"]
    yield Job(_cell(suite, model, "float", "FP32", 0), scale * own["float"][0])
    for seed in range(seeds):
        psaq = scale * rng.choice(images["psaq"])
        clamp = {width: scale * rng.choice(images["clamp"]) for width in ("A8", "A6", "A4")}
        for source in ("noise", "real", "psaq"):
            for number in range(CALIBRATORS):
                for bits in BITS:
                    name = f"{suite} {model} psaq {seed}" if source == "psaq" else ""
                    cell = _cell(suite, model, f"{source}+c{number}", bits, seed)
                    yield Job(cell, scale * rng.choice(own[source]), name, psaq if name else 0.0)
        for bits in BITS:
            width = f"A{bits.partition('A')[2]}"
            name = f"{suite} {model} clamp {width} {seed}"
            yield Job(_cell(suite, model, "clamp", bits, seed), scale * rng.choice(own["clamp"]), name, clamp[width])


def _cell(suite: str, model: str, method: str, bits: str, seed: int) -> Cell:
    common: dict[str, Any] = {"task": "classification", "weights": "", "data": "", "limit": None, "options": {}}
    return Cell(**common, suite=suite, model=model, method=method, bits=bits, scheme="full", seed=seed)


@dataclass
class Outcome:
    """What a simulated sweep came to, in seconds; `efficiency` is useful host time by all host time until the end."""

    hosts: int
    useful: float = 0.0  # each cell once, each set of images once
    lost: float = 0.0  # spent on cells whose host was lost
    waited: float = 0.0  # for images that another host made
    again: float = 0.0  # images that were made a second time
    loads: int = 0
    losses: int = 0
    end: float = 0.0
    longest: float = 0.0  # path that no schedule avoids: images, then a cell
    order: list[str] = field(default_factory=list)  # keys as they finish
    scheduling: float = 0.0  # real seconds spent in the scheduler

    @property
    def efficiency(self) -> float:
        """0 to 1."""
        return self.useful / (self.hosts * self.end)


@dataclass
class _Host:
    name: str
    domain: str
    model: tuple[str, str] | None = None
    job: Job | None = None
    since: float = 0.0
    life: int = 0  # events of an earlier life do not count


class Simulation:
    """A sweep on hosts of which one is lost every `every` seconds (None: never), chosen at random, repeatably."""

    def __init__(self, jobs: Sequence[Job], hosts: int, every: float | None, *, shared: bool = True) -> None:
        self._jobs = {job.cell.key: job for job in jobs}
        self._estimator = Estimator()
        # As planned: by source, since which widths share images is known only when they are made.
        names = {job.cell.key: job.cell.method.partition("+")[0] for job in jobs if job.images}
        self.work = Work([job.cell for job in jobs], self._estimator.seconds, names, self._estimator.making)
        self._hosts = [_Host(f"h{number}", "" if shared else f"h{number}") for number in range(hosts)]
        self._every, self._shared = every, shared
        self._rng = random.Random(1)
        self._events: list[tuple[float, int, str, _Host | None, int]] = []
        self._number = count()
        self._idle: list[_Host] = []
        self._made: set[tuple[str, str]] = set()  # domain and name
        self._making: dict[tuple[str, str], list[_Host]] = {}  # the maker, then who waits
        self._ever: set[str] = set()
        self.outcome = Outcome(hosts, longest=max(job.seconds + job.images_seconds for job in jobs))

    def run(self) -> Outcome:
        """Until every cell is finished."""
        for host in self._hosts:
            self._at(START, "take", host)
        if self._every is not None:
            self._at(self._every, "lose", None)
        while self.work.left:
            now, _, kind, host, life = heapq.heappop(self._events)
            if host is None:
                self._lose(now)
            elif host.life == life:
                getattr(self, f"_{kind}")(now, host)
            self.outcome.end = now
        return self.outcome

    def _at(self, when: float, kind: str, host: _Host | None) -> None:
        heapq.heappush(self._events, (when, next(self._number), kind, host, host.life if host else 0))

    def _take(self, now: float, host: _Host) -> None:
        start = time.perf_counter()
        cell = self.work.take(host.name, host.domain)
        self.outcome.scheduling += time.perf_counter() - start
        if cell is None:
            self._idle.append(host)
            return
        host.job = self._jobs[cell.key]
        host.since = now
        model = cell.suite, cell.model
        if host.model != model:
            host.model, now = model, now + LOAD
            self.outcome.loads += 1
        self._at(now, "begin", host)

    def _begin(self, now: float, host: _Host) -> None:
        assert host.job is not None
        place = host.domain, host.job.images
        if not host.job.images or place in self._made:
            self._at(now + host.job.seconds, "end", host)
        elif place in self._making:
            self._making[place].append(host)
        else:
            self._making[place] = [host]
            self._at(now + host.job.images_seconds, "images", host)

    def _images(self, now: float, host: _Host) -> None:
        assert host.job is not None
        name, seconds = host.job.images, host.job.images_seconds
        if name in self._ever:
            self.outcome.again += seconds
        else:
            self._ever.add(name)
            self.outcome.useful += seconds
        self._made.add((host.domain, name))
        for waiting in self._making.pop((host.domain, name)):
            assert waiting.job is not None
            if waiting is not host:
                self.outcome.waited += seconds
            self._at(now + waiting.job.seconds, "end", waiting)

    def _end(self, now: float, host: _Host) -> None:
        job, host.job = host.job, None
        assert job is not None
        self.outcome.useful += job.seconds
        self.outcome.order.append(job.cell.key)
        record: Any = SimpleNamespace(status="ok", cell=job.cell, seconds=now - host.since, stages={})
        record.provenance = SimpleNamespace(hardware={})
        if job.images:
            record.stages["synthesize"] = SimpleNamespace(seconds=job.images_seconds)
        self._estimator.learn(record)
        start = time.perf_counter()
        self.work.finished(job.cell)
        self.outcome.scheduling += time.perf_counter() - start
        self._take(now, host)
        self._wake(now)

    def _wake(self, now: float) -> None:
        idle, self._idle = self._idle, []
        for host in idle:
            self._take(now, host)

    def _lose(self, now: float) -> None:
        assert self._every is not None
        self._at(now + self._every, "lose", None)
        host = self._rng.choice(self._hosts)
        self.outcome.losses += 1
        job, host.job, host.model = host.job, None, None
        host.life += 1
        if host in self._idle:
            self._idle.remove(host)
        self._at(now + RESTART + START, "take", host)
        if not self._shared:
            self._made = {place for place in self._made if place[0] != host.domain}
            self.work.forget(host.domain)
        if job is not None:
            self.outcome.lost += now - host.since
            self._hand_over((host.domain, job.images), host, now)
            self.work.give_back(job.cell)
        self._wake(now)

    def _hand_over(self, place: tuple[str, str], host: _Host, now: float) -> None:
        """If the host was making images, or waiting for some, it is no more; the first that waited makes them."""
        group = self._making.get(place, [])
        if host not in group:
            return
        maker = group[0] is host
        group.remove(host)
        if not group:
            del self._making[place]
        elif maker:
            assert group[0].job is not None
            self._at(now + group[0].job.images_seconds, "images", group[0])


def main() -> None:
    """Simulate and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--hosts", default="1,4,16,64,256")
    parser.add_argument("--every", type=float, default=30.0, help="minutes between two losses of a host")
    parser.add_argument("--scale", default="1,4", help="factors of all durations")
    args = parser.parse_args()
    out = sys.stdout.write
    columns = ("durations", "hosts", "hosts lost", "image cache", "hours", "efficiency", "lost, h", "waited, h")
    columns += ("made again, h", "models loaded", "ms of scheduling per cell")
    out(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for scale in map(float, args.scale.split(",")):
        jobs = sweep(args.cells, scale)
        for hosts in map(int, args.hosts.split(",")):
            for every, shared in ((None, True), (60 * args.every, True), (60 * args.every, False)):
                if every is not None and hosts < FEWEST:
                    continue
                o = Simulation(jobs, hosts, every, shared=shared).run()
                hours = [f"{seconds / 3600:.1f}" for seconds in (o.lost, o.waited, o.again)]
                failures = "none" if every is None else f"{o.losses}"
                row = [f"x{scale:g}", hosts, failures, "shared" if shared else "per host", f"{o.end / 3600:.1f}"]
                row += [f"{o.efficiency:.1%}", *hours, o.loads, f"{1000 * o.scheduling / len(jobs):.2f}"]
                out(f"| {' | '.join(map(str, row))} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
