"""The pinned suite: which cells the gate measures and how far each may move. Reads its TOML file, runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from harness.api.errors import UsageError
from harness.api.written import Written
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.io.toml import read_toml
from harness.plan.plan import Plan, Planned, Request, make_plan
from harness.regress.exported import ExportedCase
from harness.results.store import Store

Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Points = Annotated[float, Field(ge=0, le=100)]
FLOAT_HERE = 0.0  # the float model computes what it did, unless the environment differs


class Group(Written):
    """Cases that share their tolerances, in points: every method at every precision on every model.

    `tolerance` holds in the environment of the baseline, `elsewhere` in any other; `reason` says where they come from.
    With `xfail`, the reason of a known difference, the cases are expected to fail. `task` is the suite's unless it is
    given here.
    """

    task: Sentence | None = None
    models: Names
    methods: Names
    bits: Names
    schemes: Names = ("full",)
    seeds: int = Field(1, ge=1)
    tolerance: Points
    elsewhere: Points
    reason: Sentence
    xfail: Sentence | None = None


class FloatModels(Written):
    """How far the accuracy of float models may move in another environment; in the same one it may not."""

    elsewhere: Points
    reason: Sentence


class Suite(Written):
    """The file's content. `threads` are those that the cells are computed with unless the user says otherwise.

    `exported` is a cell whose file is looked at as well.
    """

    suite: str
    task: str = "classification"
    preset: str = "quick"
    limit: int | None = Field(None, ge=1)
    threads: int = Field(2, ge=1)
    float_models: FloatModels
    exported: ExportedCase | None = None
    cases: Annotated[tuple[Group, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Case:
    """One cell of the suite with its tolerances in points."""

    planned: Planned
    tolerance: float
    elsewhere: float
    reason: str
    xfail: str | None = None

    @property
    def cell(self) -> Cell:
        """What is measured."""
        return self.planned.cell

    @property
    def name(self) -> str:
        """How the case is called everywhere."""
        return name_of(self.cell)


def name_of(cell: Cell) -> str:
    """`embedded vit psaq W4A8 full seed 0`: the same for all options and revisions of data and weights."""
    return f"{cell.suite} {cell.label}"


def read_suite(path: Path) -> Suite:
    """The suite in a TOML file.

    Raises:
        UsageError: the file is missing or malformed.
    """
    missing = f"there is no suite {path}; docs/regression.md shows how to write one"
    tables = read_toml(path, "suite", missing=missing)
    try:
        return Suite.model_validate(tables)
    except ValidationError as error:
        raise UsageError(f"suite {path} is not valid ({first_problem(error)}); see docs/regression.md") from None


def first_problem(error: ValidationError) -> str:
    """Where the first problem is and what it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is not known"
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def plan_cases(
    suite: Suite,
    path: Path,
    catalog: Catalog,
    store: Store,
    *,
    data_root: Path | None = None,
    trust_configs: bool = False,
) -> list[Case]:
    """The cases in the order in which they run: a model's together, its float reference first.

    Raises:
        UsageError: something in the suite is unknown, or two groups have the same case; the message names the file.
    """
    cases: dict[str, Case] = {}
    try:
        trusting = _trusting(suite, catalog) if trust_configs else frozenset()
        for group in suite.cases:
            request = _request(suite, group, data_root, trust_configs=(group.task or suite.task) in trusting)
            for case in _cases(make_plan(request, catalog, store), group, suite.float_models):
                known = cases.setdefault(case.cell.key, case)
                if known is not case and not case.cell.is_float:
                    raise UsageError(f"'{case.name}' is in two groups of [[cases]]; leave it in one")
    except UsageError as error:
        raise UsageError(f"suite {path}: {error}") from None
    models = list(dict.fromkeys(case.cell.model for case in cases.values()))
    return sorted(cases.values(), key=lambda case: (models.index(case.cell.model), not case.cell.is_float))


def plan_exported(
    suite: Suite,
    path: Path,
    catalog: Catalog,
    store: Store,
    *,
    data_root: Path | None = None,
    trust_configs: bool = False,
) -> Planned | None:
    """The suite's exported cell, if it has one.

    Raises:
        UsageError: something of it is unknown, or it cannot be exported; the message names the file.
    """
    if suite.exported is None:
        return None
    from harness.export.remake import check_exportable

    try:
        trusted = trust_configs and suite.task in _trusting(suite, catalog)
        plan = make_plan(_exported_request(suite, suite.exported, data_root, trust_configs=trusted), catalog, store)
        *_, planned = plan.cells  # behind the float model, or that itself, which is refused
        check_exportable(planned.cell)
        if planned.reason is not None:
            raise UsageError(f"{planned.cell.label} cannot be measured: {planned.reason}")
    except UsageError as error:
        raise UsageError(f"[exported] of suite {path}: {error}") from None
    return planned


def _trusting(suite: Suite, catalog: Catalog) -> frozenset[str]:
    """The suite's tasks that have configs to trust.

    Raises:
        UsageError: none has.
    """
    own = [suite.task] * (suite.exported is not None)
    tasks = dict.fromkeys([*(group.task or suite.task for group in suite.cases), *own])
    found = frozenset(task for task in tasks if catalog.tasks.get(task).runs_configs)
    if not found:
        raise UsageError(f"--trust-configs: no model of {', '.join(tasks)} has a config; leave it out")
    return found


def _request(suite: Suite, group: Group, data_root: Path | None, *, trust_configs: bool) -> Request:
    return Request(
        methods=group.methods,
        models=group.models,
        bits=group.bits,
        schemes=group.schemes,
        tasks=(group.task or suite.task,),
        suite=suite.suite,
        seeds=group.seeds,
        limit=suite.limit,
        preset=suite.preset,
        references=False,
        data_root=data_root,
        rerun="all",  # what is stored was measured by who knows what code
        trust_configs=trust_configs,
    )


def _cases(plan: Plan, group: Group, float_models: FloatModels) -> Iterator[Case]:
    for planned in plan.cells:
        if planned.cell.is_float:
            yield Case(planned, FLOAT_HERE, float_models.elsewhere, float_models.reason)
        else:
            yield Case(planned, group.tolerance, group.elsewhere, group.reason, group.xfail)


def _exported_request(suite: Suite, case: ExportedCase, data_root: Path | None, *, trust_configs: bool) -> Request:
    return Request(
        methods=(case.method,),
        models=(case.model,),
        bits=(case.bits,),
        schemes=(case.scheme,),
        tasks=(suite.task,),
        suite=suite.suite,
        limit=suite.limit,
        preset=suite.preset,
        references=False,
        data_root=data_root,
        trust_configs=trust_configs,
    )


def plan_of(cases: Sequence[Case]) -> Plan:
    """The cases as a plan that can be run."""
    return Plan(tuple(case.planned for case in cases))
