"""How long a plan will take, in a few honest sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace

from harness.io.text import duration
from harness.plan.plan import Plan, Planned

USUAL_JOBS = (1, 8, 64)  # where an executor decides by itself how many hosts there are


def sentences(plan: Plan, jobs: int | None = 1, here: Iterable[str] | None = None) -> list[str]:
    """What there is to run and how long it may take.

    Args:
        plan: The plan.
        jobs: Cells at a time; None: nobody knows yet.
        here: What computes: the names of the GPUs, or else of the processor. None: other machines, nobody knows which.
    """
    run = [planned for planned in plan.todo if planned.state != "skip"]
    if not run:
        return [f"{len(plan.cells)} cells, all of them done: nothing to run."]
    known = [planned.estimate for planned in run if planned.estimate is not None]
    text = f"{len(run)} of {len(plan.cells)} cells to run"
    if not known:
        return [
            f"{text}; no time estimate, since nothing like them was measured here before."
            + " A first cell of each method gives one, and is part of the whole: --seeds 1 with one of --bits."
            * (len(run) > 1)
        ]
    text += f", {_times(known, jobs)}"
    unknown = len(run) - len(known)
    text += f" plus {unknown} without an estimate (?), never measured here before." if unknown else "."
    return [text, *_borrowed(run, None if here is None else frozenset(here))]


def wall(seconds: Sequence[float], jobs: int) -> float:
    """Seconds until `jobs` hosts are done, the longest cells first; loading models and waiting are left out."""
    ends = [0.0] * max(1, min(jobs, len(seconds)))
    heapify(ends)
    for each in sorted(seconds, reverse=True):
        heapreplace(ends, ends[0] + each)
    return max(ends)


def _times(seconds: Sequence[float], jobs: int | None) -> str:
    alone = f"about {duration(sum(seconds))}"
    if jobs == 1:
        return alone
    several = [number for number in (USUAL_JOBS if jobs is None else (jobs,)) if number > 1]
    return f"{alone} with one job" + "".join(f", {duration(wall(seconds, number))} with {number}" for number in several)


def _borrowed(run: Sequence[Planned], here: frozenset[str] | None) -> list[str]:
    """Which of the estimates are not of such cells here."""
    found = []
    machines: Counter[str] = Counter()
    others = 0
    for planned in run:
        if planned.basis is not None:
            machines.update(planned.basis.machines if here is None else planned.basis.machines - here)
            others += planned.basis.other_models
    if machines:
        names = ", ".join(name for name, _ in machines.most_common())
        found.append(f"These times are from records of {names}; other machines are faster or slower.")
    if others:
        each = "One estimate is that" if others == 1 else f"{others} of the estimates are those"
        found.append(f"{each} of the same method on other models, which may be smaller or larger.")
    return found
