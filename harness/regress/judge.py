"""Compares what was measured with the baseline and gives every case its verdict. Pure: nothing is read or shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness import stats
from harness.cell import Cell
from harness.regress.baseline import Baseline, Entry
from harness.regress.measure import Fact, Measurement
from harness.regress.rule import ALPHA, Limits, detectable, seen
from harness.regress.suite import Case

# `xfail`: it fails as expected; `xpass`: it should have failed and did not; `missing`: it gave no number.
Status = Literal["ok", "fail", "xfail", "xpass", "missing"]
POWER = 0.8


@dataclass(frozen=True)
class Pairing:
    """Two runs of a case on the same images: images gained and lost, and p-values of the exact McNemar test."""

    up: int
    down: int
    p: float
    p_adjusted: float

    @property
    def flips(self) -> int:
        """Images that only one of the two has right."""
        return self.up + self.down


@dataclass(frozen=True)
class Sensitivity:
    """What the rule sees in a case, in points: the smallest net drop that fails, given the flips that were observed,
    and the smallest true drop that fails in 80 % of simulated runs. None: no drop would.
    """

    net: float | None
    true: float | None


@dataclass(frozen=True)
class Verdict:
    """A case's verdict. `problems` say why it fails, `notes` what else there is to know.

    `new` is None if it was not measured, `paired` if it was not or on other images.
    """

    case: Case
    old: Entry
    new: Measurement | None
    limits: Limits
    status: Status
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    paired: Pairing | None = None
    sensitivity: Sensitivity | None = None

    @property
    def fails(self) -> bool:
        """Whether the gate fails because of what this case measured."""
        return self.status in ("fail", "xpass")

    @property
    def change(self) -> str:
        """`embedded vit psaq W4A8 full seed 0: 91.20 → 90.10`."""
        return f"{self.case.name}: {self.old.value:.2f} → {f'{self.new.value:.2f}' if self.new else 'no number'}"


def judge(
    cases: Sequence[Case],
    baseline: Baseline,
    measured: Mapping[str, Measurement],
    unmeasured: Mapping[str, str],
    *,
    repeatable: bool,
) -> list[Verdict]:
    """The verdicts in the order of the cases.

    Args:
        cases: The suite's cases; those that the baseline lacks are left out.
        baseline: Old outcomes by name.
        measured: New outcomes by name.
        unmeasured: Why there are none, by name.
        repeatable: Whether the environment is the baseline's.
    """
    known = [case for case in cases if case.name in baseline.cases]
    drafts = [_draft(case, baseline.cases[case.name], measured, unmeasured, repeatable) for case in known]
    adjusted = stats.holm([draft.paired.p if draft.paired else np.nan for draft in drafts])
    family = sum(draft.paired is not None for draft in drafts)
    return [_decide(draft, float(p), family) for draft, p in zip(drafts, adjusted, strict=True)]


def _draft(
    case: Case, old: Entry, measured: Mapping[str, Measurement], unmeasured: Mapping[str, str], repeatable: bool
) -> Verdict:
    """A verdict before p-values can be adjusted."""
    repeatable = repeatable and old.environment is None
    limits = Limits(old.images, case.tolerance if repeatable else case.elsewhere, repeatable)
    new = measured.get(case.name)
    if new is None:
        return Verdict(case, old, None, limits, "missing", (unmeasured.get(case.name, "it was not run"),))
    paired = None
    if new.cell.data == old.cell.data and new.images == old.images:
        before = old.outcomes()
        up, down = int((new.correct & ~before).sum()), int((before & ~new.correct).sum())
        p = float(stats.mcnemar_of_counts(up, down))
        paired = Pairing(up, down, p, p)
    return Verdict(case, old, new, limits, "ok", tuple(_changed_facts(old, new)), tuple(_options(old, new)), paired)


def _changed_facts(old: Entry, new: Measurement) -> Iterator[str]:
    """What must be equal and is not."""
    before = {**_identity(old.cell), "metric": old.metric, "evaluation images": old.images, **old.facts}
    now = {**_identity(new.cell), "metric": new.metric, "evaluation images": new.images, **new.facts}
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            yield f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"


def _identity(cell: Cell) -> dict[str, Fact]:
    return {"weights": cell.weights, "evaluation data": cell.data}


def _short(value: Fact | None) -> str:
    if isinstance(value, str) and len(value) > 24:  # a hash
        return f"{value[:12]}…"
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _options(old: Entry, new: Measurement) -> Iterator[str]:
    """Options that changed: no failure by itself, since a new option may leave everything as it was."""
    before, now = _flat(old.cell.options), _flat(new.cell.options)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield f"option {name}: {before.get(name, 'none')} → {now.get(name, 'none')}"


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, object] = {}
    for name, each in value.items():
        inner = name if prefix in ("", "parts") else f"{prefix}.{name}"
        found |= _flat(each, inner)
    return found


def _decide(draft: Verdict, adjusted: float, family: int) -> Verdict:
    if draft.new is None:
        return draft
    problems, notes = list(draft.problems), list(draft.notes)
    paired, sensitivity = None, None
    if draft.paired is not None:
        paired = replace(draft.paired, p_adjusted=adjusted)
        problems += _moved(draft.limits, paired)
        if not problems and draft.limits.beyond(paired.up, paired.down):
            notes.append(f"beyond its tolerance, but not significantly (p = {paired.p_adjusted:.3f})")
        flips = min(paired.flips, int(draft.limits.flips))  # more of them fail without any drop
        sensitivity = Sensitivity(detectable(draft.limits, flips, family), seen(draft.limits, flips, family, POWER))
    return replace(
        draft,
        status=_status(bool(problems), draft.case.xfail),
        problems=tuple(problems),
        notes=tuple(notes),
        paired=paired,
        sensitivity=sensitivity,
    )


def _moved(limits: Limits, paired: Pairing) -> Iterator[str]:
    """What the rule finds, in words."""
    up, down = paired.up, paired.down
    if not limits.fails(up, down, paired.p_adjusted):
        return
    points = 100 * (up - down) / limits.images
    how = f"{up} images gained, {down} lost, p = {paired.p_adjusted:.2g}"
    if limits.beyond(up, down) and (limits.repeatable or paired.p_adjusted <= ALPHA):
        kind = "drop" if up < down else "gain that nobody has explained"
        yield f"{kind} of {abs(points):.2f} points, beyond the tolerance of {limits.tolerance:g} ({how})"
    else:
        most = f"{limits.flips:.0f} that go with a tolerance of {limits.tolerance:g}"
        yield f"{paired.flips} images flip, more than the {most} ({how})"


def _status(failing: bool, xfail: str | None) -> Status:
    if xfail:
        return "xfail" if failing else "xpass"
    return "fail" if failing else "ok"
