"""The gate's report as text: for a terminal, as Markdown and, a line per case, for annotations. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.io import text as safe
from harness.regress.baseline import Update
from harness.regress.environment import sentence
from harness.regress.judge import Status, Verdict
from harness.regress.pairing import POWER, Pairing
from harness.regress.rule import ALPHA

NONE = "–"
_STYLES: dict[Status, str] = {"ok": "", "fail": "red", "xfail": "yellow", "xpass": "red", "missing": "red"}
_COLUMNS = (
    *("case", "baseline", "now", "Δ", "up", "down", "changed", "p", "tolerance", "net seen", "true seen"),
    "verdict",
)
_TEXTS = ("case", "verdict")


@dataclass(frozen=True)
class Report:
    """What a run of the gate found. `changes`: name, old and new value of what differs in the environment.

    `update` is the last renewal of the baseline.
    """

    title: str
    verdicts: Sequence[Verdict]
    changes: list[tuple[str, str, str]]
    update: Update


def explain(verdict: Verdict) -> list[str]:
    """The lines of a case that is not plainly `ok`: what changed, then why that is a failure, or not."""
    lines = [f"{verdict.status.upper()} {verdict.change}"]
    if verdict.status == "missing":
        lines.append(f"it gave no number: {verdict.problems[0]}")
        return lines
    lines += verdict.problems
    if verdict.status == "xfail":
        lines.append(f"expected: {verdict.case.xfail}")
    if verdict.status == "xpass":
        lines.append(f"it was expected to fail ({verdict.case.xfail}) and passes; remove its xfail from the suite")
    return [*lines, *(f"note: {note}" for note in verdict.notes)]


def explained(report: Report) -> Iterator[list[str]]:
    """The explanations of all cases that need one."""
    for verdict in report.verdicts:
        if verdict.status != "ok" or verdict.notes:
            yield explain(verdict)


def summary(report: Report) -> str:
    """How many cases there are of each verdict: `20 cases: 19 ok, 1 fail.`."""
    counts = Counter(verdict.status for verdict in report.verdicts)
    found = ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status])
    return f"{len(report.verdicts)} cases: {found or 'none'}."


def notes(report: Report) -> list[str]:
    """How to read the table."""
    update = report.update
    when = f"{update.date[:10]}, commit {update.commit[:12]}" if update.commit else "at an unknown commit"
    return [
        f"The baseline was last renewed on {when}: {update.reason}",
        sentence(report.changes),
        *_applied(report),
        "Changed: images whose outcome is another one; those of a metric that is a share of right images went up or "
        f"down. p: exact McNemar test, or paired bootstrap of any other metric, adjusted by Holm over the cases; "
        f"significant up to {ALPHA:g}. Net seen: the smallest net drop in points that this rule fails, given the"
        f" changes of this run. True seen: the smallest true drop that {POWER:.0%} of simulated runs fail.",
    ]


def _applied(report: Report) -> Iterator[str]:
    """Which tolerance applies to which cases, and why; an entry of the baseline may name an environment of its own."""
    cases: dict[str, list[Verdict]] = {}
    for verdict in report.verdicts:
        cases.setdefault(verdict.applies, []).append(verdict)
    for applies, own in cases.items():
        named = [f"'{verdict.case.name}'" for verdict in own if verdict.old.environment is not None]
        why = f"; the baseline names an environment of its own for {', '.join(named)}" if named else ""
        yield f"Tolerances are {applies} ({len(own)} of {len(report.verdicts)} cases{why})."


def rows(report: Report) -> list[tuple[str, ...]]:
    """The table's rows as text."""
    return [_row(verdict) for verdict in report.verdicts]


def _row(verdict: Verdict) -> tuple[str, ...]:
    new, paired, sees = verdict.new, verdict.paired, verdict.sensitivity
    return (
        verdict.case.name,
        f"{verdict.old.value:.2f}",
        f"{new.value:.2f}" if new else NONE,
        f"{new.value - verdict.old.value:+.2f}" if new else NONE,
        str(paired.up) if isinstance(paired, Pairing) else NONE,
        str(paired.down) if isinstance(paired, Pairing) else NONE,
        NONE if paired is None else str(paired.flips if isinstance(paired, Pairing) else paired.changed),
        f"{paired.p_adjusted:.3f}" if paired else NONE,
        f"{verdict.limits.tolerance:g} {'elsewhere' if verdict.changes else 'tight'}",
        _points(sees.net if sees else None),
        _points(sees.true if sees else None),
        verdict.status,
    )


def _points(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def print_report(report: Report, console: Console) -> None:
    """Print differences of the environment, the table and what needs an explanation."""
    if report.changes:
        environment = Table("environment", "baseline", "now", title="What differs", title_justify="left")
        for change in report.changes:
            environment.add_row(*map(escape, change))
        console.print(environment)
    table = Table(title=escape(report.title), title_justify="left")
    for name in _COLUMNS:
        text = name in _TEXTS
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for verdict, row in zip(report.verdicts, rows(report), strict=True):
        table.add_row(*map(escape, row), style=_STYLES[verdict.status])
    console.print(table)
    for note in notes(report):
        console.print(note, markup=False, highlight=False)
    for first, *rest in explained(report):
        console.print(first, markup=False, highlight=False, soft_wrap=True, style="bold")
        for line in rest:
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(summary(report), markup=False, highlight=False)


def markdown(report: Report) -> str:
    """The same as Markdown."""
    lines = [f"### {_cell(report.title)}", "", summary(report), ""]
    for first, *rest in explained(report):
        lines += [f"- **{_cell(first)}**", *(f"  - {_cell(line)}" for line in rest)]
    lines += ["", *_table(_COLUMNS, rows(report)), "", *(f"{_cell(note)}\n" for note in notes(report))]
    if report.changes:
        lines += _table(("environment", "baseline", "now"), report.changes)
    return "\n".join(lines).rstrip() + "\n"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in body),
    ]


def _cell(text: str) -> str:
    return safe.markdown(" ".join(text.split()))
