"""Compares what was measured with the baseline and gives every case its verdict. Pure: nothing is read or shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.identity.cell import Cell
from harness.regress.baseline import Baseline, Entry
from harness.regress.environment import Environment, differences
from harness.regress.measure import COUNTED, Fact, Measurement
from harness.regress.pairing import Paired, Sensitivity, pair
from harness.regress.rule import Limits
from harness.regress.suite import Case
from harness.report import stats

# `xfail`: it fails as expected; `xpass`: it should have failed and did not; `missing`: it gave no number.
SLIGHT = 0.01  # share by which counts may differ in another environment
Status = Literal["ok", "fail", "xfail", "xpass", "missing"]


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
    paired: Paired | None = None
    sensitivity: Sensitivity | None = None
    changes: tuple[str, ...] = ()  # names of what differs between the value's environment and that of this run

    @property
    def applies(self) -> str:
        """Which tolerance applies, and why."""
        if not self.changes:
            return "tight: same environment"
        shown = ", ".join(self.changes[:3]) + (f" and {len(self.changes) - 3} more" if len(self.changes) > 3 else "")
        return f"elsewhere: {shown} {'differs' if len(self.changes) == 1 else 'differ'}"

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
    environment: Environment,
) -> list[Verdict]:
    """The verdicts in the order of the cases.

    Args:
        cases: The suite's cases; those that the baseline lacks are left out.
        baseline: Old outcomes by name.
        measured: New outcomes by name.
        unmeasured: Why there are none, by name.
        environment: That of the new outcomes; where a value is of the same one, its tolerance is tight.
    """
    known = [case for case in cases if case.name in baseline.cases]
    drafts = [
        _draft(case, old := baseline.cases[case.name], measured, unmeasured, _changes(baseline, old, environment))
        for case in known
    ]
    adjusted = stats.holm([draft.paired.p if draft.paired else np.nan for draft in drafts])
    family = sum(draft.paired is not None for draft in drafts)
    return [_decide(draft, float(p), family) for draft, p in zip(drafts, adjusted, strict=True)]


def _changes(baseline: Baseline, old: Entry, environment: Environment) -> tuple[str, ...]:
    """What differs from the environment of an entry, its own or else the baseline's."""
    return tuple(name for name, _, _ in differences(old.environment or baseline.environment, environment))


def _draft(
    case: Case,
    old: Entry,
    measured: Mapping[str, Measurement],
    unmeasured: Mapping[str, str],
    changes: tuple[str, ...],
) -> Verdict:
    """A verdict before p-values can be adjusted."""
    limits = Limits(old.images, case.elsewhere if changes else case.tolerance, repeatable=not changes)
    new = measured.get(case.name)
    if new is None:
        reasons = (unmeasured.get(case.name, "it was not run"),)
        return Verdict(case, old, None, limits, "missing", reasons, changes=changes)
    paired = pair(old.outcomes(), new.outcomes) if new.cell.data == old.cell.data else None
    changed = _changed_facts(old, new)
    slight = {name for name in changed if changes and _is_rounding(name, old, new)}
    problems = tuple(text for name, text in changed.items() if name not in slight)
    notes = (*(text for name, text in changed.items() if name in slight), *_options(old, new))
    return Verdict(case, old, new, limits, "ok", problems, notes, paired, changes=changes)


def _is_rounding(name: str, old: Entry, new: Measurement) -> bool:
    """Whether a fact may differ in another environment: a search counts what it compares, and rounding decides ties."""
    before, now = old.facts.get(name), new.facts.get(name)
    if not name.startswith(COUNTED) or not isinstance(before, int | float) or not isinstance(now, int | float):
        return False
    return abs(now - before) <= SLIGHT * abs(before)


def _changed_facts(old: Entry, new: Measurement) -> dict[str, str]:
    """What must be equal and is not: its name and what to say of it."""
    found = {}
    before = {**_identity(old.cell), "metric": old.metric, "evaluation images": old.images, **old.facts}
    now = {**_identity(new.cell), "metric": new.metric, "evaluation images": new.images, **new.facts}
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            found[name] = f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"
    return found


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
        problems += paired.problems(draft.limits)
        if not problems and paired.beyond(draft.limits):
            notes.append(f"beyond its tolerance, but not significantly (p = {paired.p_adjusted:.3f})")
        sensitivity = paired.sensitivity(draft.limits, family)
    return replace(
        draft,
        status=_status(bool(problems), draft.case.xfail),
        problems=tuple(problems),
        notes=tuple(notes),
        paired=paired,
        sensitivity=sensitivity,
    )


def _status(failing: bool, xfail: str | None) -> Status:
    if xfail:
        return "xfail" if failing else "xpass"
    return "fail" if failing else "ok"
