"""One run of the gate, from the suite's file to the exit code."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.io.exit_codes import NOTHING_MEASURED, OK, SOME_FAILED
from harness.io.files import prepare_folder
from harness.plan.outcome import exit_code
from harness.regress.baseline import Baseline, Entry, Update, read_baseline, renewed, write_baseline
from harness.regress.environment import Environment, differences
from harness.regress.exported import exported_faults
from harness.regress.judge import Verdict, judge
from harness.regress.measure import Measurement, measurement
from harness.regress.publish import publish
from harness.regress.show import Report, print_report
from harness.regress.suite import Case, Suite, name_of, plan_cases, plan_exported, plan_of, read_suite
from harness.results import history
from harness.results.provenance import revision
from harness.results.record import Record
from harness.results.store import Store
from harness.run.executors.base import Resources
from harness.run.executors.registry import divided, open_executor
from harness.run.runner import Settings
from harness.run.sweep import run_plan

REGRESSION = 1


@dataclass(frozen=True)
class Options:
    """What the user asks for.

    `baseline` is the JSON file; the suite is the TOML file of the same name beside it. `update` is the reason for
    renewing it, `label` that of the rows for `history`; None: neither. `out` keeps the records; None: they go.
    `data_root` is the folder of the suite's data, if it needs one. `trust_configs`: configs of models may run code.
    `executor` is the name of what runs cells.
    """

    baseline: Path
    history: Path
    update: str | None = None
    label: str | None = None
    junit: Path | None = None
    out: Path | None = None
    threads: int | None = None
    executor: str = "worker"
    data_root: Path | None = None
    trust_configs: bool = False


@dataclass(frozen=True)
class _Run:
    """What was measured, and why the rest was not."""

    code: int
    measured: dict[str, Measurement]
    unmeasured: dict[str, str]
    environment: Environment | None


def run_gate(options: Options, catalog: Catalog, environ: Mapping[str, str], console: Console) -> int:
    """Measure the suite, compare, report; renew the baseline if asked to. Returns the exit code.

    Raises:
        UsageError: suite, baseline or an option is not usable.
    """
    _check(options)
    suite_path, path = options.baseline.with_suffix(".toml"), options.baseline.with_suffix(".json")
    suite = read_suite(suite_path)
    baseline = read_baseline(path)
    if baseline is None and options.update is None:
        raise UsageError(f'there is no baseline {path}; measure it with regress --update-baseline "why"')
    with tempfile.TemporaryDirectory(prefix="dfqbench-regress-") as temporary:
        store = Store(options.out or Path(temporary, "cells"))
        cases = plan_cases(
            suite, suite_path, catalog, store, data_root=options.data_root, trust_configs=options.trust_configs
        )
        if options.update is None and baseline is not None:
            _check_same_cases(cases, baseline, suite_path, path)
        exported = plan_exported(
            suite, suite_path, catalog, store, data_root=options.data_root, trust_configs=options.trust_configs
        )
        # The image cache is the run's own too: a gate that reads a cache tests the cache.
        cache = Path(temporary, "cache")
        prepare_folder(store.folder, "--out")
        prepare_folder(cache, "--out")
        requested = plan_of(cases).requested
        if exported is not None:
            requested |= {exported.cell.model: exported.requested}
        threads, trusted = options.threads or suite.threads, options.trust_configs
        settings = Settings(catalog, "cpu", threads, cache, options.data_root, requested, trusted)
        run = _measure(cases, store, settings, console, executor=options.executor)
        broken = exported is not None and _exported(suite, exported.cell, settings, Path(temporary), console)
    report = _report(suite, cases, baseline, run)
    if report is not None:
        print_report(report, console)
        publish(report, environ, console, options.junit)
    elif options.junit is not None:
        _say(console, f"Nothing was compared, so that {options.junit} was not written.")
    if run.code == NOTHING_MEASURED:
        console.print("Nothing was measured.", style="red")
        return NOTHING_MEASURED
    if options.update is not None:
        if run.unmeasured:
            for name, reason in run.unmeasured.items():
                _say(console, f"MISSING {name}: {reason}")
            _say(console, f"{path} stays as it is, since not every case gave a number.")
            return SOME_FAILED
        kept = _renew(path, baseline, cases, run, options.update.strip())
        _say(console, f"Wrote {path}: {len(cases)} cases.")
        for name in kept:
            _say(console, f"'{name}' keeps its old value, since it is expected to fail; without xfail it is renewed.")
        _remember(options.history, options.update, run, console)
        return REGRESSION if broken else OK
    if options.label is not None:
        _remember(options.history, options.label, run, console)
    if broken or (report is not None and any(verdict.fails for verdict in report.verdicts)):
        return REGRESSION  # also if other cells failed: this much is known
    return run.code


def _check(options: Options) -> None:
    for option, file in (("--baseline", options.baseline), ("--junit", options.junit)):
        if file is not None and (not file.name or file.is_dir()):
            raise UsageError(f"{option} {file} is a folder; give a file")
    if options.baseline.suffix != ".json":
        raise UsageError(
            f"--baseline {options.baseline} is no .json file; the suite is the .toml of the same name beside it"
        )
    if options.update is not None and options.label is not None:
        raise UsageError("--update-baseline adds to the history with its own reason; leave --history out")
    for option, text in (("--update-baseline", options.update), ("--history", options.label)):
        if text is not None and not text.strip():
            raise UsageError(f'{option} needs a text that says why, as in {option} "torch 2.15"')
    # What would only be found when all is measured.
    if options.junit is not None:
        prepare_folder(options.junit.parent, "--junit")
    if (options.update is not None or options.label is not None) and options.history.exists():
        history.read(options.history)


def _check_same_cases(cases: Sequence[Case], baseline: Baseline, suite: Path, path: Path) -> None:
    wanted, there = [case.name for case in cases], list(baseline.cases)
    new, gone = [n for n in wanted if n not in there], [n for n in there if n not in wanted]
    found = [f"{path} lacks {_listed(new)} of {suite}"] * bool(new) + [
        f"{suite} lacks {_listed(gone)} of {path}"
    ] * bool(gone)
    if found:
        raise UsageError(f'{", and ".join(found)}; renew the baseline with regress --update-baseline "why"')


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _measure(cases: Sequence[Case], store: Store, settings: Settings, console: Console, *, executor: str) -> _Run:
    """Run all cells anew."""
    plan = plan_of(cases)
    resources, _, text = divided(executor, settings.device, Resources(), settings.threads)
    console.print(text)
    with closing(open_executor(executor, settings, resources)) as runs:
        measured_now = run_plan(plan, store, runs, console, jobs=resources.jobs or 1)
    failures = {record.key: record for record in measured_now}
    # A folder of an earlier run keeps its result of a cell that fails now, which is not this run's.
    records = [failures.get(record.key, record) for record in store.records() if record.key in plan.keys]
    ok = [record for record in records if record.status == "ok"]
    tasks = settings.catalog.tasks
    measured = {name_of(record.cell): measurement(record, store, tasks.get(record.cell.task)) for record in ok}
    unmeasured = {name_of(record.cell): _why(record) for record in records if record.status != "ok"}
    environment = Environment.of(ok[0].provenance) if ok else None
    code = exit_code(plan, records)
    # A sweep may skip what makes no sense; a suite is pinned, so that all of its cases must give a number.
    return _Run(SOME_FAILED if code == OK and unmeasured else code, measured, unmeasured, environment)


def _exported(suite: Suite, cell: Cell, settings: Settings, folder: Path, console: Console) -> bool:
    """Whether the suite's exported cell is no longer what it was; says what was found.

    Without the extra it cannot be looked at, which is no fault of it.
    """
    from harness.export.runtimes import check_installed

    case = suite.exported
    assert case is not None
    name = f"exported {case.model} {case.method} {case.bits} {case.scheme}"
    try:
        check_installed()
    except UsageError as error:
        _say(console, f"NOT CHECKED {name}: {error}")
        return False
    try:
        faults = exported_faults(case, cell, settings, folder)
    except UsageError as error:
        faults = [str(error)]
    for fault in faults:
        _say(console, f"FAIL {name}: {fault}")
    if not faults:
        _say(console, f"ok {name}: codes are torch's, {case.integer} products are of integers.")
    return bool(faults)


def _why(record: Record) -> str:
    if record.failure is None:
        return f"skipped: {record.reason}"
    return record.failure.headline


def _report(suite: Suite, cases: Sequence[Case], baseline: Baseline | None, run: _Run) -> Report | None:
    """The comparison; None if there is nothing to compare."""
    if baseline is None or run.environment is None:
        return None
    changes = differences(baseline.environment, run.environment)
    verdicts: list[Verdict] = judge(cases, baseline, run.measured, run.unmeasured, run.environment)
    return Report(f"Regression gate, suite {suite.suite}", verdicts, changes, baseline.updates[-1])


def _renew(path: Path, old: Baseline | None, cases: Sequence[Case], run: _Run, reason: str) -> list[str]:
    """Write the baseline; return the names of the cases that keep their old values."""
    assert run.environment is not None
    entries = [(case, Entry.of(run.measured[case.name])) for case in cases]
    baseline, kept = renewed(old, entries, run.environment, Update.now(reason, revision()))
    write_baseline(path, baseline)
    return kept


def _remember(path: Path, label: str, run: _Run, console: Console) -> None:
    """Add a row per case to the history."""
    assert run.environment is not None
    numbers = [history.Number(m.cell, m.metric, m.value, m.images) for m in run.measured.values()]
    added = history.append(path, numbers, label.strip(), revision(), run.environment.fingerprint)
    _say(console, f"Added {added} rows to {path}.")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
