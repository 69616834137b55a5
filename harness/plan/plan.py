"""Which cells a run asks for, which of them are there already, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from harness.api.contracts import Suite
from harness.api.errors import UsageError
from harness.api.spec import SCHEMES, BitSpec, split_scheme
from harness.catalog.catalog import Catalog, ResolvedMethod, once
from harness.catalog.code import code_for
from harness.catalog.registry import check_known
from harness.catalog.requirements import Unmet, unmet, unsuited
from harness.identity.cell import FLOAT, FLOAT_BITS, FLOAT_SCHEME, Cell
from harness.plan.estimate import Basis, Estimator
from harness.results.provenance import is_stale
from harness.results.record import Record
from harness.results.store import Store

State = Literal["done", "stale", "failed", "new", "skip"]
RERUN: Mapping[str, tuple[State, ...]] = {
    "failed": ("new", "skip", "failed"),
    "stale": ("new", "skip", "failed", "stale"),
    "all": ("new", "skip", "failed", "stale", "done"),
}
MOST_SEEDS = 1000
CLEAN = "clean"  # the corruption that is none
FITTED_SCHEME = "matmul"  # what calibrators that fit ranges quantize in their papers
# Methods, their precisions and schemes.
Asked = Sequence[tuple[Sequence[ResolvedMethod], Sequence[str], Sequence[str]]]
REFERENCES = ("noise", "real")  # floor and ceiling that a table is read against
# What an ablation has where the user says nothing: one precision, since its differences are small. W4A5 is
# hard enough to tell variants apart; at W4A4 clipping by chance decides (results of one method differ by 40 points).
# Few seeds, since its variants are many.
ABLATION: Mapping[str, Any] = {"methods": (), "bits": ("W4A5",), "fitted": (), "seeds": 3}


@dataclass(frozen=True)
class Request:
    """What the user asks for, as typed. `models` empty: those of the suite.

    At the precisions of `fitted`, images are run with a calibrator that fits its ranges to them (`Catalog.fitted`), in
    the schemes of `fitted_schemes`. If `bits` are not typed but the usual ones, only methods that choose widths are run
    at mixed ones; else all are, and the others skipped with a reason.

    `limit` is the number of evaluation images; None for all, or, as a `first_look`, for as many as the task takes of
    the suite where nothing is said.

    `ablation` names a method that is run with all its ablations instead of `methods`, without references.
    """

    methods: tuple[str, ...]
    models: tuple[str, ...] = ()
    bits: tuple[str, ...] = ("W8A8", "W4A8", "W4A4")
    bits_typed: bool = True
    fitted: tuple[str, ...] = ()
    fitted_schemes: tuple[str, ...] = (FITTED_SCHEME,)
    schemes: tuple[str, ...] = ("full",)
    tasks: tuple[str, ...] = ("classification",)
    suite: str = "embedded"
    data_root: Path | None = None
    seeds: int = 1
    limit: int | None = None
    first_look: bool = False
    corruptions: tuple[str, ...] = (CLEAN,)
    preset: str = "default"
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    references: bool = True
    rerun: str = "failed"
    ablation: str = ""
    trust_configs: bool = False

    @property
    def all_schemes(self) -> tuple[str, ...]:
        """Every scheme that something is run in."""
        return tuple(dict.fromkeys((*self.schemes, *(self.fitted_schemes if self.fitted else ()))))


@dataclass(frozen=True)
class Planned:
    """A cell, what is known of it, and the seconds it may take (None: nothing like it was measured before).

    `requested` is the model as the user named it, perhaps with a path; the cell has the canonical name. `reason` says
    why the method cannot run on the network, in the scheme or at the precision; such a cell is recorded as skipped, and
    the model need not be loaded.
    """

    cell: Cell
    state: State
    run: bool
    estimate: float | None
    requested: str
    reason: str | None = None
    images: str = ""
    basis: Basis | None = None  # of the estimate


@dataclass(frozen=True)
class Plan:
    """All cells of a request in the order in which they run, and what the suites say of its models."""

    cells: tuple[Planned, ...]
    notices: tuple[str, ...] = ()

    @property
    def todo(self) -> list[Planned]:
        """The cells that will be measured."""
        return [planned for planned in self.cells if planned.run]

    @property
    def keys(self) -> set[str]:
        """Keys of all cells, measured or not."""
        return {planned.cell.key for planned in self.cells}

    @property
    def requested(self) -> dict[str, str]:
        """The user's name of every model, by its canonical name."""
        return {planned.cell.model: planned.requested for planned in self.cells}

    @property
    def skips(self) -> dict[str, str]:
        """Key -> reason of the cells that are known beforehand to make no sense."""
        return {planned.cell.key: planned.reason for planned in self.cells if planned.reason is not None}

    @property
    def reused_stale(self) -> int:
        """How many stale cells are used as they are."""
        return sum(planned.state == "stale" and not planned.run for planned in self.cells)


def make_plan(request: Request, catalog: Catalog, store: Store) -> Plan:
    """Expand, de-duplicate and order the cells, and look up which are there.

    Cells of one model stand together, so that it is loaded once, float first; then whole repetitions, so that a sweep
    that is cut short has the first repetition of everything.

    Raises:
        UsageError: anything in the request that is unknown or out of range, or a record that cannot be read.
    """
    _check(request)
    names = _names(request, catalog)
    low = catalog.fitted(names) if request.fitted else []
    # Together, since an option may be of a method in either.
    each = catalog.resolve_each([*names, *low], request.preset, request.overrides)
    plain, fitted = (_quantizing(each[name] for name in group) for group in (names, low))
    methods = once([*plain, *fitted])
    asked = [*_usual(request, plain), (fitted, request.fitted, request.fitted_schemes)]
    for task in request.tasks:
        check_known(f"{task} suite", request.suite, catalog.tasks.get(task).suites)
    records = {record.cell.key: record for record in store.records()}
    suites = _suites(request, catalog)
    for suite in suites:
        suite.check_limit(request.limit)
        _check_parts(request, suite)
        for corruption in request.corruptions:
            as_evaluated(suite, _named(corruption))
    estimator = Estimator(records.values())
    cells: dict[str, tuple[Cell, str, str | None]] = {}
    limits = {suite.task: _limit(request, catalog, suite) for suite in suites}
    notices = [
        f"{text} at {', '.join(request.fitted)} is {fit}, where {', '.join(lost)} of its own calibrator has no part"
        for text, fit in zip(names, low, strict=False)
        if (lost := catalog.unfitted(text, fit))
    ]
    for suite, requested, weights, reasons in _models(request, suites, methods):
        limit = limits[suite.task]
        if limit != request.limit:
            notices.append(
                f"{suite.task} on {suite.name}: the first {limit:,} evaluation images; --limit all takes all of them"
            )
        for cell in _cells(replace(request, limit=limit), asked, suite, suite.canonical_name(requested), weights):
            cells.setdefault(cell.key, (cell, requested, reasons.get((cell.method, cell.scheme))))
        notices += suite.notices(requested) if hasattr(suite, "notices") else ()
    shared = {method.name: method.images for method in methods}
    planned = []
    known = {method.name: method for method in methods}
    for cell, requested, lacking in cells.values():
        reason = lacking
        if reason is None and not cell.is_float:
            reason = unsuited(known[cell.method], BitSpec.parse(cell.bits), cell.scheme)
        state = _state(records.get(cell.key), store, catalog)
        if reason is not None and state in ("new", "failed"):
            state = "skip"
        seconds = estimator.seconds(cell) if reason is None else 0.0
        images = shared.get(cell.method, "") if reason is None else ""
        run, basis = state in RERUN[request.rerun], estimator.basis(cell)
        planned.append(Planned(cell, state, run, seconds, requested, reason, images, basis))
    store.remember()
    return Plan(tuple(planned), tuple(dict.fromkeys(notices)))


def _limit(request: Request, catalog: Catalog, suite: Suite) -> int | None:
    """How many evaluation images of the suite are taken; None for all."""
    if request.limit is not None or not request.first_look:
        return request.limit
    usual = catalog.tasks.get(suite.task).first_look.get(request.suite)
    try:
        suite.check_limit(usual)
    except UsageError:  # it has fewer, of which the user said nothing
        return None
    return usual


def _suites(request: Request, catalog: Catalog) -> list[Suite]:
    tasks = [catalog.tasks.get(task) for task in request.tasks]
    if request.trust_configs and not any(task.runs_configs for task in tasks):
        raise UsageError(f"--trust-configs: no model of {', '.join(request.tasks)} has a config; leave it out")
    return [task.open_suite(request.suite, request.data_root, trust_configs=request.trust_configs) for task in tasks]


def _check(request: Request) -> None:
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"--limit must be at least 1 image, not {request.limit}")
    if not 1 <= request.seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds must be 1 to {MOST_SEEDS:,} repetitions, not {request.seeds}")
    if request.ablation and request.methods:
        raise UsageError("--ablation says which methods are run; leave out --methods")
    if request.ablation and request.fitted:
        raise UsageError("--ablation runs a method as it is; leave out --fitted")
    for name in ("methods", "bits", "schemes", "tasks", "corruptions"):
        if not getattr(request, name) and not (name == "methods" and request.ablation):
            raise UsageError(f"--{name} is empty; leave it out for the default")
    for bits in (*request.bits, *request.fitted):
        BitSpec.parse(bits)
    for scheme in request.all_schemes:
        check_known("scheme", split_scheme(scheme)[0], SCHEMES)
    check_known("--rerun", request.rerun, RERUN)


def _check_parts(request: Request, suite: Suite) -> None:
    known = getattr(suite, "parts", ())
    for scheme in request.all_schemes:
        tensors, part = split_scheme(scheme)
        if part is None and scheme != tensors:
            raise UsageError(f"scheme '{scheme}' names no part; write --schemes {tensors}, or {tensors}:backbone")
        if part is not None and not known:
            raise UsageError(f"scheme '{scheme}': {suite.task} models are quantized whole; write --schemes {tensors}")
        if part is not None:
            check_known(f"part of {suite.task} models in --schemes", part, known)


def _names(request: Request, catalog: Catalog) -> list[str]:
    """The methods to run, as names: those asked for with the references, or a method with its ablations."""
    if not request.ablation:
        return [*(REFERENCES if request.references else ()), *request.methods]
    variants = catalog.ablations(request.ablation, request.preset, request.overrides)
    if not variants:
        known = ", ".join(catalog.ablated()) or "none"
        raise UsageError(f"'{request.ablation}' has no ablations; with ablations: {known}")
    return [request.ablation, *variants]


def _quantizing(methods: Iterable[ResolvedMethod]) -> list[ResolvedMethod]:
    """The methods, each once, without the float model."""
    return [method for method in once(methods) if method.name != FLOAT]


def _usual(request: Request, methods: Sequence[ResolvedMethod]) -> Asked:
    """The methods with the precisions that they are run at."""
    if request.bits_typed:
        return [(methods, request.bits, request.schemes)]
    mixed = [bits for bits in request.bits if BitSpec.parse(bits).mixed]
    choosing = [method for method in methods if method.parts[-1][0].mixed]
    fixed = [bits for bits in request.bits if bits not in mixed]
    return [(methods, fixed, request.schemes), (choosing, mixed, request.schemes)]


def _models(
    request: Request, suites: list[Suite], methods: list[ResolvedMethod]
) -> list[tuple[Suite, str, str, Unmet]]:
    """Suite, model as named, weight hash and what methods lack there; every suite must know a named model, and every
    named model a suite.

    What is lacking is found first: it needs no weights, which may have to be downloaded.
    """
    found = []
    errors: dict[str, UsageError] = {}
    for suite in suites:
        for model in request.models or suite.models():
            try:
                reasons = unmet(suite, model, methods, request.all_schemes)
                found.append((suite, model, suite.model_identity(model), reasons))
            except UsageError as error:
                errors.setdefault(model, error)
    known = {model for _, model, *_ in found}
    for model, reason in errors.items():
        if model not in known:
            raise reason
    for suite in suites:
        if all(suite is not each for each, *_ in found):
            named = f"has none of the models named ({', '.join(request.models)})" if request.models else "has no models"
            raise UsageError(f"task '{suite.task}' {named}; name one of it with --models, or leave the task out")
    return found


def _cells(request: Request, asked: Asked, suite: Suite, model: str, weights: str) -> Iterable[Cell]:
    common: dict[str, Any] = {"suite": suite.name, "task": suite.task, "model": model, "weights": weights}
    common |= {"data": suite.data_identity(), "limit": request.limit}
    for corruption in map(_named, request.corruptions):
        yield from _of_images(request, asked, suite, common | {"corruption": corruption})


def _of_images(request: Request, asked: Asked, suite: Suite, common: dict[str, Any]) -> Iterable[Cell]:
    """The cells of one model on one set of evaluation images."""
    yield Cell(**common, method=FLOAT, options={}, bits=FLOAT_BITS, scheme=FLOAT_SCHEME, seed=0)
    real = any(method.data == "images" for methods, *_ in asked for method in methods)
    images = calibration_identity(suite) if real else ""
    for seed in range(request.seeds):
        for methods, widths, schemes in asked:
            for method, scheme, bits in product(methods, schemes, widths):
                yield Cell(
                    **common,
                    method=method.name,
                    options=method.options,
                    bits=str(BitSpec.parse(bits)),
                    scheme=scheme,
                    seed=seed,
                    calibration=images if method.data == "images" else "",
                )


def _named(corruption: str) -> str:
    return "" if corruption == CLEAN else corruption


def as_evaluated(suite: Suite, corruption: str) -> Suite:
    """The suite with its evaluation images corrupted, or itself if `corruption` is empty.

    Raises:
        UsageError: the task has no corruptions, or not this one.
    """
    if not corruption:
        return suite
    make = getattr(suite, "corrupted", None)
    if make is None:
        raise UsageError(f"--corruptions: images of task '{suite.task}' cannot be corrupted; leave it out")
    found: Suite = make(corruption)
    return found


def calibration_identity(suite: Suite) -> str:
    """Revision of the suite's calibration data where that of all its data does not cover them, else empty.

    Raises:
        UsageError: there are none.
    """
    ask = getattr(suite, "calibration_identity", None)
    return "" if ask is None else str(ask())


def _state(record: Record | None, store: Store, catalog: Catalog) -> State:
    if record is None or not store.complete(record):
        return "new"
    if record.status == "failed":
        return "failed"
    return "stale" if is_stale(record.provenance, code_for(catalog, record.cell)) else "done"
