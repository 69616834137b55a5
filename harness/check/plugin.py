"""`check PLUGIN`: does a plugin keep its contract? Runs it on tiny random networks and says what it finds.

A method or a part of one is run as in any sweep, so that what a sweep checks in every cell is checked here too: what
layers receive, that the float model and the process stay as they were, that data are not touched. On top of that cells
are run twice, in new processes, since the same cell has to give the same number. A task is opened and its models
are held against the contract of `VisionModel` and `Suite`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.api.errors import UsageError, first_line
from harness.api.plugins import KINDS, PRESETS, PluginInfo
from harness.api.spec import SCHEMES
from harness.catalog.catalog import Catalog, ResolvedMethod
from harness.catalog.registry import check_known
from harness.identity.cell import Cell
from harness.io.text import visible
from harness.plan.plan import REFERENCES

if TYPE_CHECKING:
    from harness.run.runner import Measured

TASK, SUITE = "classification", "tiny"  # where methods are checked
PRESET = "quick"
WIDTHS = ("W8A8", "W4A4", "MP4.5")
EXECUTOR = "worker"
TIMEOUT: float | None = 600.0  # seconds that each cell may take
OK, FAILED, NOTE = "ok", "FAILED", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `result` is `ok`, `FAILED`, or `note` for what an author may want to know."""

    what: str
    result: str
    detail: str = ""


def check(name: str, catalog: Catalog, console: Console) -> bool:
    """Check every plugin called `name` and print the findings; whether all is as it should be.

    Raises:
        UsageError: there is none of that name, or it cannot be imported.
    """
    known = [*catalog.method_names(), *catalog.tasks.names()]
    check_known("plugin", name, known)
    found = [_shown(finding, console) for finding in _findings(name, catalog)]
    failed = sum(finding.result == FAILED for finding in found)
    console.print(f"{name}: {len(found)} checks, {failed} failed.", markup=False, highlight=False)
    return not failed


def _findings(name: str, catalog: Catalog) -> Iterator[Finding]:
    for kind in KINDS:
        if name in catalog.of(kind):
            info = catalog.of(kind).get(name)
            yield from _description(info)
            built = _construction(info)
            yield built
            if built.result == OK:
                yield from _cells(info, catalog)
    if name in catalog.tasks:
        from harness.check.task import check_task

        yield from check_task(catalog.tasks.get(name))


def _shown(finding: Finding, console: Console) -> Finding:
    """Print the finding at once, since the next one may take a while."""
    text = f"{finding.result:6} {finding.what}" + (f": {finding.detail}" if finding.detail else "")
    style = {FAILED: "red", NOTE: "yellow"}.get(finding.result, "")
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()
    return finding


def _construction(info: PluginInfo) -> Finding:
    """Whether its class can be made from the options of every preset."""
    what = f"{info.kind}: construction"
    for preset in PRESETS:
        try:
            info.load()(info.resolve(preset, {}))
        except Exception as error:  # the plugin's own code
            return Finding(what, FAILED, f"with preset '{preset}': {type(error).__name__}: {first_line(error)}")
    return Finding(what, OK)


def _description(info: PluginInfo) -> Iterator[Finding]:
    """What a plugin says of itself: all that `describe` prints."""
    what = f"{info.kind}: description"
    missing = [name for name, field in info.options.model_fields.items() if not field.description]
    if not info.summary:
        yield Finding(what, FAILED, "summary is empty; say in one line what it does")
    elif info.origin == "reconstruction" and not info.deviations:
        yield Finding(what, FAILED, "a reconstruction must list in `deviations` what is inferred")
    elif info.origin != "baseline" and not info.paper:
        yield Finding(what, FAILED, f"its origin is '{info.origin}', but `paper` is empty")
    elif missing:
        yield Finding(what, FAILED, f"option '{missing[0]}' has no description ({len(missing)} such)")
    else:
        yield Finding(what, OK)
    if info.ablations:
        try:
            for preset in PRESETS:
                info.check_ablations(preset, {})
            yield Finding(f"{info.kind}: ablations", OK)
        except UsageError as error:
            yield Finding(f"{info.kind}: ablations", FAILED, str(error))


def _methods(info: PluginInfo, catalog: Catalog) -> list[ResolvedMethod]:
    """What it is run in: a source with the references' calibrator, a calibrator or transform with both of their
    sources.
    """
    names = [info.name]
    if info.kind == "source":
        names = [f"{info.name}+{catalog.sources.get(REFERENCES[0]).partner}"]
    if info.kind == "transform":
        calibrator = catalog.sources.get(REFERENCES[0]).partner
        names = [f"{source}+{info.name}+{calibrator}" for source in REFERENCES]
    if info.kind == "calibrator":
        names = [f"{source}+{info.name}" for source in REFERENCES]
    return [catalog.resolve(name, PRESET) for name in names]


def _cells(info: PluginInfo, catalog: Catalog) -> Iterator[Finding]:
    """Findings of all cells of a method, source, transform or calibrator."""
    from harness.run.executors.base import Resources
    from harness.run.executors.registry import open_executor
    from harness.run.runner import Settings
    from harness.run.work import Work

    suite = catalog.tasks.get(TASK).open_suite(SUITE, None)
    with tempfile.TemporaryDirectory() as folder:
        executors = []
        for name in ("first", "second"):  # caches of their own, or the second run would get the first one's images
            (Path(folder) / name).mkdir()
            executors.append(
                open_executor(EXECUTOR, Settings(catalog, "cpu", 1, Path(folder) / name), Resources(TIMEOUT))
            )
        try:
            for method in _methods(info, catalog):
                for model in suite.models():
                    for scheme in SCHEMES:
                        for bits in WIDTHS:
                            cell = Cell(
                                suite=SUITE,
                                task=TASK,
                                model=model,
                                weights=suite.model_identity(model),
                                data=suite.data_identity(),
                                limit=None,
                                method=method.name,
                                options=method.options,
                                bits=bits,
                                scheme=scheme,
                                seed=0,
                            )
                            first, second = (next(runs.map(Work([cell]), lambda *_: None)) for runs in executors)
                            yield _finding(cell, first, second)
        finally:
            for executor in executors:
                executor.close()


def _finding(cell: Cell, first: Measured, second: Measured) -> Finding:
    record = first.record
    if record.failure is not None:
        return Finding(cell.label, FAILED, record.failure.headline)
    if record.status == "skipped":
        return Finding(cell.label, OK, f"skipped: {record.reason}")
    if first.outcomes is None or second.outcomes is None or not first.outcomes.equals(second.outcomes):
        detail = "the same cell gave other outcomes the second time; take random numbers from ctx.generator"
        return Finding(cell.label, FAILED, detail)
    reason = record.unverified
    return Finding(cell.label, NOTE, f"unverified: {reason}") if reason else Finding(cell.label, OK)
