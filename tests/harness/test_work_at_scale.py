"""Large sweeps on many hosts, some of which are lost: nothing is lost or done twice, and hosts have something to do."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.identity.cell import Cell
from harness.run.work import Work

sys.path.insert(0, str(Path(__file__).parents[1] / "perf"))

from scheduling import Simulation, _cell, sweep

HALF_AN_HOUR = 1800.0


@pytest.fixture(scope="module")
def jobs():
    return sweep(10_000)


@pytest.mark.parametrize(("every", "least"), [(None, 0.90), (HALF_AN_HOUR, 0.80)])
def test_64_hosts_are_used(jobs, every, least):
    outcome = Simulation(jobs, 64, every).run()
    assert outcome.efficiency >= least
    assert sorted(outcome.order) == sorted(job.cell.key for job in jobs)
    assert outcome.again == 0.0


@pytest.mark.parametrize("shared", [True, False])
def test_lost_hosts_cost_their_own_cells_alone(shared):
    jobs = sweep(600)
    outcome = Simulation(jobs, 16, 300.0, shared=shared).run()
    assert outcome.losses > 3
    assert Counter(outcome.order) == Counter(job.cell.key for job in jobs)


def test_a_simulation_is_repeatable():
    first, second = (Simulation(sweep(300), 8, 900.0).run() for _ in range(2))
    assert first.order == second.order
    assert first.end == second.end


def cells_of(number: int, models: int) -> list[Cell]:
    return [_cell("s", f"m{n % models}", f"x{n // models % 7}", "W8A8", n // models // 7) for n in range(number)]


@settings(max_examples=60)
@given(
    number=st.integers(1, 60),
    models=st.integers(1, 4),
    hosts=st.integers(1, 6),
    domains=st.integers(1, 3),
    sharing=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_whatever_happens_each_cell_is_finished_once_where_its_images_are(
    *, number, models, hosts, domains, sharing, seed
):
    cells, rng = cells_of(number, models), random.Random(seed)
    images = {c.key: c.method for c in cells if int(c.method[1]) < sharing}
    seconds = {cell.key: rng.choice([None, 1.0, 10.0, 300.0]) for cell in cells}
    work = Work(cells, lambda cell: seconds[cell.key], images, lambda cell: 50.0)
    running: dict[str, Cell] = {}
    made_in: dict[tuple[str, int, str], str] = {}
    finished: Counter[str] = Counter()
    misses = 0
    while work.left:
        host = f"h{rng.randrange(hosts)}"
        domain = f"d{int(host[1]) % domains}"
        if host not in running:
            cell = work.take(host, domain)
            if cell is None:
                misses += not running
                assert misses < 500, "nobody works, and nobody gets anything"
                continue
            misses = 0
            assert cell.key not in finished
            assert cell.key not in {other.key for other in running.values()}
            if cell.key in images:
                place = cell.model, cell.seed, images[cell.key]
                assert made_in.get(place, domain) == domain
            running[host] = cell
        elif rng.random() < 0.2:
            work.give_back(running.pop(host))
        else:
            cell = running.pop(host)
            finished[cell.key] += 1
            made_in[cell.model, cell.seed, images.get(cell.key, "")] = domain
            work.finished(cell)
    assert finished == Counter(cell.key for cell in cells)
    assert work.waiting == 0


def calls_per_cell(number: int) -> float:
    """Python calls that handing out `number` cells takes, on average: a clock that does not depend on the machine."""
    cells = cells_of(number, 12)
    work = Work(cells, lambda cell: float(cell.method[1]) + 1.0, {c.key: c.method for c in cells}, lambda _: 5.0)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    hosts = [f"h{n}" for n in range(64)]
    running: list[Cell] = []
    sys.setprofile(count)
    try:
        while work.left:
            while len(running) < len(hosts) and (cell := work.take(hosts[len(running)])) is not None:
                running.append(cell)
            work.finished(running.pop(0))
    finally:
        sys.setprofile(None)
    return calls / number


def test_a_cell_costs_no_more_among_many():
    assert calls_per_cell(8_000) < 2 * calls_per_cell(1_000)
