"""Which cells reproduce the table of a paper: its published numbers, read by its recipe, as a plan."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.api.errors import UsageError
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.registry import check_known
from harness.plan.plan import Plan, Planned, Request, make_plan
from harness.results.published import Published
from harness.results.recipes import METRIC, SUITE, TASK, Recipe
from harness.results.store import Store

Row = Mapping[Hashable, Any]
_PLACE = ("method", "model", "task", "dataset", "metric", "bits", "scheme")  # what makes two numbers those of one cell


@dataclass(frozen=True)
class Choice:
    """What of a paper's table the user wants; names are the published ones, none means all.

    `checkpoints` has another model for some of them. The rest is as in a `Request`; `seeds` None are the recipe's.
    """

    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    data_root: Path | None = None
    seeds: int | None = None
    limit: int | None = None
    rerun: str = "failed"


@dataclass(frozen=True)
class Printed:
    """A number that somebody printed, in points, and where."""

    value: float
    source: str


@dataclass(frozen=True)
class Target:
    """A number of the paper and the cells that measure it, one for each seed.

    `method`, `model`, `bits` and `scheme` are the published names, `measured` the method here with its options.
    `others` are what third parties printed for the same, those left out that repeat it; `float_printed` is the paper's
    float model, if it is known.
    """

    method: str
    model: str
    bits: str
    scheme: str
    printed: Printed
    note: str
    others: tuple[Printed, ...]
    float_printed: Printed | None
    measured: str
    measured_bits: str
    keys: tuple[str, ...]
    float_key: str


@dataclass(frozen=True)
class Reproduction:
    """A paper's table as a plan. `left_out` says in sentences what of the paper is not planned, and why."""

    recipe: Recipe
    plan: Plan
    targets: tuple[Target, ...]
    left_out: tuple[str, ...]


def plan_reproduction(
    recipe: Recipe, published: Published, choice: Choice, catalog: Catalog, store: Store
) -> Reproduction:
    """Plan the cells of a paper's table, and of its float models.

    Raises:
        UsageError: the paper has no numbers, a name of `choice` is none of the table's or has no number with the rest,
            the recipe has a name without a number or a method that does not exist, a model cannot be loaded, or the
            data cannot be used.
    """
    rows: Sequence[Row] = published.numbers.to_dict("records")
    own = [row for row in rows if _is_of(row, recipe.sources)]
    table = [row for row in own if _is_here(row) and row["method"] in recipe.methods]
    table += _quoted(table, rows, recipe)
    if not table:
        raise UsageError(
            f"there are no published numbers of {recipe.paper} that its recipe could measure ({TASK} on {SUITE}, "
            f"methods {', '.join(recipe.methods)}); add them to results/published"
        )
    if unused := next(_unused(recipe, table, rows), None):
        raise UsageError(
            f"the recipe of {recipe.paper} has '{unused[1]}' in {unused[0]}, which stands for none of the published "
            "numbers; correct it or leave it out"
        )
    left_out = _elsewhere(own, recipe)
    table = _chosen(table, choice)
    found: list[tuple[Row, _Ways]] = []
    for row in table:
        ways = _ways(row, recipe, published.names, choice)
        if isinstance(ways, str):
            left_out.append(f"{row['method']} on {row['model']} at {row['bits']}: {ways}")
        else:
            found.append((row, ways))
    if not found:
        raise UsageError(f"none of these numbers of {recipe.paper} can be measured here: {left_out[-1]}")
    canonical = _resolved({ways.method for _, ways in found}, recipe, catalog)
    request = Request(
        methods=_each(ways.method for _, ways in found),
        models=_each(ways.model for _, ways in found),
        bits=_each(ways.bits for _, ways in found),
        schemes=_each(ways.scheme for _, ways in found),
        tasks=(TASK,),
        suite=SUITE,
        data_root=choice.data_root,
        seeds=recipe.seeds if choice.seeds is None else choice.seeds,
        limit=choice.limit,
        preset=recipe.preset,
        references=False,
        rerun=choice.rerun,
    )
    plan = _planned(request, {ways.model: str(row["model"]) for row, ways in found}, catalog, store)
    cells: dict[tuple[str, str, str, str], list[Planned]] = {}
    for planned in plan.cells:
        cell = planned.cell
        where = (planned.requested, *(("", "", "") if cell.is_float else (cell.method, cell.bits, cell.scheme)))
        cells.setdefault(where, []).append(planned)
    targets = []
    for row, ways in found:
        of_float = cells.get((ways.model, "", "", ""))
        if of_float is None:
            raise UsageError(f"{row['model']} and another model of --models are the same; name it once")
        own_cells = cells[ways.model, canonical[ways.method], ways.bits, ways.scheme]
        targets.append(_target(row, rows, recipe, own_cells, of_float[0].cell.key))
    wanted = {key for target in targets for key in (*target.keys, target.float_key)}
    cut = replace(plan, cells=tuple(planned for planned in plan.cells if planned.cell.key in wanted))
    return Reproduction(recipe, cut, tuple(targets), tuple(dict.fromkeys(left_out)))


@dataclass(frozen=True)
class _Ways:
    """How a published number is asked for here."""

    method: str
    model: str
    bits: str
    scheme: str


def _is_of(row: Row, sources: Sequence[str]) -> bool:
    return str(row["source"]).startswith(tuple(sources))


def _quoted(table: Sequence[Row], rows: Sequence[Row], recipe: Recipe) -> list[Row]:
    """What others quote of the paper and its own rows do not have."""
    known = {_place(row) for row in table}
    found = [row for row in rows if _is_of(row, recipe.quoted) and _is_here(row) and row["method"] in recipe.methods]
    return [row for row in found if _place(row) not in known]


def _unused(recipe: Recipe, table: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Key and name of what the recipe has and none of the numbers that it stands for."""
    here = [row for row in rows if _is_here(row)]
    quotable = [row for row in here if row["method"] in recipe.methods]
    floats = [row for row in here if row["method"] == "float"]
    for key, sources, among in (
        ("sources", recipe.sources, rows),
        ("quoted", recipe.quoted, quotable),
        ("floats", recipe.floats, floats),
    ):
        yield from ((key, source) for source in sources if not any(_is_of(row, (source,)) for row in among))
    for key, column, names in (
        ("[methods]", "method", recipe.methods),
        ("[models]", "model", recipe.models),
        ("[bits]", "bits", recipe.bits),
    ):
        known = {row[column] for row in table}
        yield from ((key, name) for name in names if name not in known)


def _place(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _PLACE)


def _is_here(row: Row) -> bool:
    return (row["task"], row["dataset"], row["metric"]) == (TASK, SUITE, METRIC)


def _each(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _elsewhere(own: Sequence[Row], recipe: Recipe) -> list[str]:
    """What of the paper's numbers has no place in this table, in sentences."""
    counts: dict[str, int] = {}
    for row in own:
        if row["method"] == "float" or (_is_here(row) and row["method"] in recipe.methods):
            continue
        here, place = _is_here(row), f"{row['task']} on {row['dataset']}"
        what = f"{row['method']}: not in the recipe" if here else f"{place}, which this command does not measure"
        counts[what] = counts.get(what, 0) + 1
    return [f"{what} ({count} {'number' if count == 1 else 'numbers'})" for what, count in counts.items()]


def _chosen(table: Sequence[Row], choice: Choice) -> list[Row]:
    options = (
        ("--methods", "method", choice.methods),
        ("--models", "model", choice.models),
        ("--bits", "bits", choice.bits),
    )
    chosen = list(table)
    for kind, column, names in options:
        for name in names:
            check_known(f"{column} of this paper's table in {kind}", name, _each(str(row[column]) for row in table))
        chosen = [row for row in chosen if not names or row[column] in names]
    if not chosen:
        raise UsageError("the paper's table has no number for this choice of --methods, --models and --bits")
    for kind, column, names in options:
        if lost := [name for name in names if all(row[column] != name for row in chosen)]:
            one = next(row for row in table if row[column] == lost[0])
            raise UsageError(
                f"{lost[0]} in {kind} has no number with the rest of this choice, but, for one, {one['method']} on "
                f"{one['model']} at {one['bits']}; leave it out, or ask for it apart"
            )
    return chosen


def _ways(row: Row, recipe: Recipe, names: Mapping[str, Mapping[str, str]], choice: Choice) -> _Ways | str:
    """How a number is measured here, or why it cannot be."""
    model, bits, scheme = str(row["model"]), str(row["bits"]), str(row["scheme"])
    here = {**names["models"], **recipe.models, **choice.checkpoints}.get(model)
    if here is None:
        return "names.toml knows no such model"
    quantized = names["schemes"].get(scheme)
    if quantized is None:
        return f"its source does not say which tensors are quantized (scheme '{scheme}')"
    asked = {**names["bits"], **recipe.bits}.get(bits, bits)
    try:
        spec = str(BitSpec.parse(asked))
    except UsageError as error:
        return str(error)
    return _Ways(recipe.methods[str(row["method"])], here, spec, quantized)


def _resolved(texts: set[str], recipe: Recipe, catalog: Catalog) -> dict[str, str]:
    """Canonical names of methods."""
    try:
        return {text: catalog.resolve(text, recipe.preset).name for text in sorted(texts)}
    except UsageError as error:
        raise UsageError(f"the recipe of {recipe.paper} cannot be used: {error}") from None


def _planned(request: Request, published: Mapping[str, str], catalog: Catalog, store: Store) -> Plan:
    try:
        return make_plan(request, catalog, store)
    except UsageError as error:
        for model, name in published.items():
            plain = model.partition("@")[0]
            if f"'{plain.removeprefix('timm:')}'" in str(error) or f"'{model}'" in str(error):
                raise UsageError(
                    f"{name} cannot be loaded: {error}; here that is --models {name}={plain}@FILE, and --models "
                    "without it leaves it out"
                ) from None
        raise


def _target(row: Row, rows: Sequence[Row], recipe: Recipe, cells: Sequence[Planned], float_key: str) -> Target:
    others = [
        Printed(float(other["value"]), str(other["source"]))
        for other in rows
        if _place(other) == _place(row) and not _is_of(other, recipe.sources) and other["value"] != row["value"]
    ]
    return Target(
        method=str(row["method"]),
        model=str(row["model"]),
        bits=str(row["bits"]),
        scheme=str(row["scheme"]),
        printed=Printed(float(row["value"]), str(row["source"])),
        note=str(row["note"]),
        others=tuple(others),
        float_printed=_float_printed(str(row["model"]), rows, recipe),
        measured=cells[0].cell.method,
        measured_bits=cells[0].cell.bits,
        keys=tuple(planned.cell.key for planned in cells),
        float_key=float_key,
    )


def _float_printed(model: str, rows: Sequence[Row], recipe: Recipe) -> Printed | None:
    floats = [row for row in rows if _is_here(row) and row["method"] == "float" and row["model"] == model]
    for source in recipe.floats:
        for row in floats:
            if _is_of(row, (source,)):
                return Printed(float(row["value"]), str(row["source"]))
    return None
