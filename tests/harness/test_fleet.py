"""Hosts on other machines, played by a cluster that runs nothing: who takes part, and what becomes of lost ones."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count

import pytest

from harness.api.errors import UsageError
from harness.catalog.code import code_for
from harness.identity.code import Code
from harness.results.record import Failure
from harness.run.executors.fleet import Fleet, Lost
from harness.run.executors.remote import LOST, Facts
from harness.run.runner import Measured, failed_record
from harness.run.work import Work

CPU = {"device": "cpu", "processor": "Some CPU", "instructions": "AVX2"}


class Host:
    def __init__(self, number, node):
        self.number, self.node, self.alive, self.looked = number, node, True, False


class Cluster:
    """Two nodes with room for one host each. `fate(host, what, cell)` is called before each answer; what it returns is
    the reason why the host is lost now. Cells take `slow` seconds; time also passes when there is nothing to wait for.
    """

    def __init__(self, settings, nodes=("a", "b"), fate=lambda *_: None, slow=0, **facts):
        self.settings, self.nodes, self.fate, self.slow, self.facts = settings, nodes, fate, slow, facts
        self.hosts, self.open, self.log, self.time = [], {}, [], 0.0
        self.numbers = count(1)

    def room(self, without):
        return len({*self.nodes} - {*without})

    def start(self, without):
        host = Host(next(self.numbers), None)
        host.without = {*without}
        self.hosts.append(host)
        return host

    def _place(self):
        for host in self.hosts:
            taken = {other.node for other in self.hosts if other.alive}
            free = [node for node in self.nodes if node not in taken | host.without]
            if host.alive and host.node is None and free:
                host.node = free[0]

    def ask(self, host, what, *arguments):
        ticket = object()
        self.open[ticket] = host, what, arguments, self.time + self.slow * (what == "measure")
        return ticket

    def wait(self, tickets, seconds):
        self._place()
        open_ = {ticket: self.open[ticket] for ticket in tickets}
        ready = [ticket for ticket, (host, *_, due) in open_.items() if host.node is not None and self.time >= due]
        if not ready or all(self.open[ticket][1] == "progress" for ticket in ready):
            self.time += seconds
        return ready

    def answer(self, ticket):
        host, what, arguments, _ = self.open.pop(ticket)
        cell = arguments[0] if what == "measure" else None
        why = self.fate(host, what, cell)
        if why or not host.alive:
            host.alive = False
            raise Lost(why or "gone")
        if what == "progress":
            return "", "", 0.0
        if what == "look":
            host.looked = True
            codes = tuple(code_for(self.settings.catalog, cell) for cell in arguments[0])
            facts = Facts(f"machine-{host.node}", host.node, codes, CPU, shares_images=True)
            return replace(facts, **self.facts.get(host.node, {}))
        self.log.append((host.number, host.node, cell.key))
        failure = Failure(type="Toy", message="no number")
        return Measured(failed_record(self.settings, cell, failure, "2026-01-01T00:00:00+00:00", 1.0))

    def stop(self, host):
        host.alive = False

    def lacks(self, without):
        return "each needs 9 CPUs"


@pytest.fixture
def sweep(settings, toy_cell):
    """Run six cells; the cluster, the results by key, the cells, and what was said."""

    def run(cells=None, images=None, jobs=2, wait=100.0, **behaviour):
        cells = cells or [toy_cell(seed=seed) for seed in range(6)]
        cluster = Cluster(settings, **behaviour)
        said, begun = [], []
        fleet = Fleet(cluster, settings, jobs, wait, said.append, lambda: cluster.time)
        results = list(
            fleet.map(Work(cells, images=images), lambda cell, text, _: begun.append(cell.key) if not text else 0)
        )
        assert not any(host.alive for host in cluster.hosts)
        assert sorted(result.record.key for result in results) == sorted(cell.key for cell in cells)
        return cluster, {result.record.key: result.record for result in results}, cells, said

    return run


def once(fate):
    """A fate that strikes the first time only."""
    struck = []

    def strike(host, what, cell):
        if not struck and fate(host, what, cell):
            struck.append(1)
            return "its node is gone"
        return None

    return strike


def test_each_cell_is_measured_once_and_all_hosts_work(sweep):
    cluster, results, cells, said = sweep()
    assert len(cluster.log) == len(cells)
    assert {node for _, node, _ in cluster.log} == {"a", "b"}
    assert not any(record.warnings for record in results.values())
    assert said == []


def test_a_lost_host_costs_another_try_of_its_own_cell(sweep):
    cluster, results, cells, said = sweep(fate=once(lambda host, what, _: host.number == 2 and what == "measure"))
    assert sorted(key for *_, key in cluster.log) == sorted(cell.key for cell in cells)
    noted = [record for record in results.values() if record.warnings]
    assert len(noted) == 1
    (notice,) = noted[0].warnings
    assert (notice.category, notice.message) == (LOST, "measured again after machine-b (host 2) was lost")
    assert said == ["Lost machine-b (host 2): its node is gone."]
    assert 3 in {number for number, *_ in cluster.log}  # another took its place


def test_a_cell_that_loses_two_hosts_has_failed_and_the_others_have_not(sweep, toy_cell):
    bad = toy_cell(seed=3).key
    cluster, results, _, _ = sweep(fate=lambda _, what, cell: "out of memory" if cell and cell.key == bad else None)
    assert {key for key, record in results.items() if record.failure.type == LOST} == {bad}
    assert re.match(r"its host was lost twice, .* machine-\w \(host \d\): out of memory", results[bad].failure.message)
    assert len(cluster.log) == 5


def test_an_idle_host_that_is_lost_costs_no_cell_a_try(sweep, toy_cell):
    cells = [toy_cell(seed=0, bits=bits) for bits in ("W4A4", "W4A8", "W8A8")]
    own = {"shares_images": False}  # so that all cells go to the host that makes the images
    fate = once(lambda host, what, _: host.looked and host.number == 2 and what == "progress")
    cluster, results, _, said = sweep(cells, {cell.key: "same" for cell in cells}, fate=fate, a=own, b=own, slow=1)
    assert said == ["Lost machine-b (host 2): its node is gone."]
    assert {number for number, *_ in cluster.log} == {1}
    assert not any(record.warnings for record in results.values())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fault": "it has no folder /data (--data-root)"}, "it has no folder /data (--data-root)"),
        (
            {"codes": (Code("f" * 64, (("torch", "1.0"),)),)},
            "it has other code than this machine (fingerprint ffffffff",
        ),
    ],
)
def test_a_host_that_would_give_other_numbers_is_left_out_and_said(sweep, changes, why):
    cluster, _, _, said = sweep(b=changes, jobs=None)
    assert {node for _, node, _ in cluster.log} == {"a"}
    assert len(said) == 1
    assert said[0].startswith(f"Host machine-b is left out: {why}")


def test_other_versions_are_said_by_name(sweep, settings, toy_cell):
    code = code_for(settings.catalog, toy_cell())
    versions = tuple((name, "0.1" if name == "torch" else version) for name, version in code.versions)
    *_, said = sweep(b={"codes": (replace(code, versions=versions),)})
    assert f"torch 0.1, here {dict(code.versions)['torch']}" in said[0]


def test_all_hosts_compute_on_what_most_of_them_have(sweep):
    other = {"processor": {"device": "cuda", "gpu": "A GPU"}}
    cluster, _, _, said = sweep(nodes=("a", "b", "c"), jobs=3, a=other)
    assert {node for _, node, _ in cluster.log} == {"b", "c"}
    why = "it computes on A GPU, the others on Some CPU with AVX2, which may give other numbers"
    assert said == [f"Host machine-a is left out: {why}."]


def test_the_choice_does_not_wait_for_hosts_that_find_no_room(sweep):
    cluster, *_ = sweep(nodes=("a",), jobs=3)
    assert len(cluster.log) == 6


def test_images_of_a_lost_machine_are_made_again_elsewhere(sweep, toy_cell):
    cells = [toy_cell(seed=0, bits=bits) for bits in ("W4A4", "W4A8", "W8A8")]
    own = {"shares_images": False}
    fate = once(lambda host, what, cell: what == "measure" and cell.bits == "W4A8")
    cluster, *_ = sweep(cells, {cell.key: "same" for cell in cells}, fate=fate, a=own, b=own)
    assert len(cluster.log) == 3


def test_hosts_that_cannot_start_end_the_sweep(sweep):
    with pytest.raises(UsageError, match="no host can be started: No module named 'harness'; what was measured"):
        sweep(fate=lambda _, what, cell: "No module named 'harness'")


def test_a_host_that_dies_while_it_starts_is_replaced(sweep):
    cluster, results, _, said = sweep(fate=once(lambda host, what, _: host.number == 1 and what == "look"))
    assert {node for _, node, _ in cluster.log} == {"a", "b"}
    assert said == []
    assert not any(record.warnings for record in results.values())


def test_no_room_is_an_error_after_a_while(sweep):
    with pytest.raises(UsageError, match=r"no host has started within 100 seconds: each needs 9 CPUs; --wait"):
        sweep(nodes=())


def test_a_cluster_without_a_usable_machine_says_why_at_once(sweep):
    fault = {"fault": "it has no folder /data (--data-root)"}
    with pytest.raises(UsageError, match=r"no machine of the cluster can take part: machine-a: it .*; machine-b: it"):
        sweep(wait=1e9, a=fault, b=fault)


def test_known_seconds_say_how_many_hosts_are_worth_it(settings, toy_cell):
    cells = [toy_cell(seed=seed) for seed in range(6)]
    cluster = Cluster(settings, nodes=tuple("abcdef"))
    fleet = Fleet(cluster, settings, None, 100.0, lambda _: None, lambda: cluster.time)
    assert len(list(fleet.map(Work(cells, lambda _: 20.0), lambda *_: None))) == 6
    assert len(cluster.hosts) == 2
