"""`export`: a cell's quantized model as a file, checked in the runtimes that run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.api.errors import UsageError
from harness.api.plugins import PRESETS
from harness.catalog.catalog import Catalog
from harness.cli.options import (
    PRESET,
    DataRoot,
    Limit,
    Trust,
    check_threads,
    images,
    make_console,
    once,
    parse_overrides,
    split,
    typed,
)
from harness.identity.names import parse_name, split_outside_brackets

if TYPE_CHECKING:
    from harness.identity.cell import Cell
    from harness.plan.plan import Plan
    from harness.results.store import Store


# What a record of --from says of its cell; --models may name it by another path.
OF_THE_RECORD = ("bits", "schemes", "task", "suite", "seed", "limit", "preset", "option")


def export(  # noqa: PLR0917 - typer passes them by name
    ctx: typer.Context,
    method: Annotated[
        str, typer.Argument(metavar="[METHOD]", help="METHOD or SOURCE+CALIBRATOR, perhaps [OPTION=VALUE,...].")
    ] = "",
    models: Annotated[str, typer.Option(help="Models, by comma; those of the suite if left out.")] = "",
    bits: Annotated[str, typer.Option(help="Bits of weights and activations, by comma.")] = "W8A8",
    schemes: Annotated[
        str, typer.Option(help="full, matmul; of detectors and segmentors full:backbone, matmul:backbone.")
    ] = "matmul",
    task: Annotated[str, typer.Option(help="The task.")] = "classification",
    suite: Annotated[str, typer.Option(help="Data and models of the task.")] = "embedded",
    data_root: DataRoot = None,
    seed: Annotated[int, typer.Option(help="The repetition.")] = 0,
    limit: Limit = None,
    preset: Annotated[str, typer.Option(help=f"Options of the method: {', '.join(PRESETS)}.")] = PRESET,
    option: Annotated[list[str] | None, typer.Option(help="NAME.FIELD=VALUE; repeatable. See `describe`.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Export a cell of this results folder instead.")
    ] = None,
    key: Annotated[str, typer.Option(help="Which cell of --from: the first digits of its key.")] = "",
    to: Annotated[Path, typer.Option(help="Folder that gets a folder for each file.")] = Path("exported"),
    out: Annotated[
        Path | None, typer.Option(help="Results folder that the cell's record is held against, or goes to.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of synthesized images.")] = Path("results/cache"),
    runtimes: Annotated[str, typer.Option(help="What checks the file: onnxruntime, openvino.")] = "onnxruntime",
    allow_float: Annotated[
        bool, typer.Option("--allow-float", help="Export also what runs in float for more than a tenth.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; those of the record, else all cores, if left out.")
    ] = None,
    trust_configs: Trust = False,
) -> None:
    """Write a cell's model as an ONNX file that computes with integers, and measure it; see docs/export.md."""
    from harness.export.runtimes import check_installed
    from harness.export.runtimes import runtimes as named

    check_installed()
    check_threads(threads)
    chosen = named(split(runtimes) or ("onnxruntime",))
    from harness.export.export import Wish, export_cells
    from harness.export.remake import check_exportable
    from harness.io.files import prepare_folder
    from harness.plan.plan import Request, make_plan
    from harness.results.store import Store
    from harness.run.image_cache import prepare_cache
    from harness.run.machine import usable_cores
    from harness.run.runner import Settings

    _check_choice(ctx, method, from_, key, seed)
    catalog = Catalog.default()
    request: dict[str, Any] = {"data_root": data_root, "trust_configs": trust_configs, "references": False}
    stored: Cell | None = None
    if from_ is not None:
        store = Store(_folder(from_, out))
        stored = _stored(store, key)
        check_exportable(stored)
        request |= _as_recorded(stored) | ({"models": (models,)} if models else {})
    else:
        store = Store(out or Path("results", "runs", suite))
        request |= {"methods": (method,), "models": once(map(str.strip, split_outside_brackets(models)))}
        request |= {"bits": split(bits), "schemes": split(schemes), "tasks": (task,), "suite": suite}
        request |= {"seeds": seed + 1, "preset": preset, "overrides": parse_overrides(option or ())}
        request |= images(limit)
    plan = make_plan(Request(**request), catalog, store)
    cells = _cells(plan, stored, seed)
    for text in (*store.sentences(), *plan.notices):
        typer.echo(text, err=True)
    prepare_folder(to, "--to")
    prepare_folder(store.folder, "--out")
    prepare_cache(cache, "--cache")
    records = {record.cell.key: record for record in store.records()}
    if threads is None:
        known = {records[cell.key].provenance.threads for cell in cells if cell.key in records}
        threads = known.pop() if len(known) == 1 else usable_cores()
    root = data_root and data_root.absolute()
    settings = Settings(catalog, "cpu", threads, cache.absolute(), root, plan.requested, trust_configs, plan.skips)
    raise typer.Exit(export_cells(cells, settings, store, Wish(to, chosen, allow_float), make_console()))


def _check_choice(ctx: typer.Context, method: str, from_: Path | None, key: str, seed: int) -> None:
    """See to it that the cell is named in one of the two ways, and by nothing of the other."""
    from harness.plan.plan import MOST_SEEDS

    if bool(method) == (from_ is not None):
        raise UsageError("name either a method, or a results folder with --from FOLDER --key KEY")
    if from_ is None and key:
        raise UsageError("--key names a cell of a results folder; give that with --from FOLDER, and no method")
    if not 0 <= seed < MOST_SEEDS:
        raise UsageError(f"--seed must be 0 to {MOST_SEEDS - 1}, not {seed}")
    beside = [f"--{name}" for name in OF_THE_RECORD if typed(ctx, name)] if from_ is not None else []
    if beside:
        raise UsageError(f"with --from a cell is exported as its record has it; leave out {', '.join(beside)}")


def _folder(from_: Path, out: Path | None) -> Path:
    from harness.io.files import is_folder

    if out is not None:
        raise UsageError("--from is the results folder; leave --out out")
    if not is_folder(from_):
        raise UsageError(f"there is no results folder {from_}; run bench first or give another --from")
    return from_


def _stored(store: Store, key: str) -> Cell:
    """The cell of `store` whose key begins with `key`."""
    if not key:
        raise UsageError("--from needs --key, the first digits of a cell's key (its record's name)")
    found = [r for r in store.records() if r.cell.key.startswith(key.lower()) and r.status == "ok"]
    if len(found) != 1:
        what = "no measured cell" if not found else f"{len(found)} cells"
        raise UsageError(f"{store.folder} has {what} whose key begins with '{key}'; its records are named after them")
    return found[0].cell


def _cells(plan: Plan, stored: Cell | None, seed: int) -> list[Cell]:
    """The cells to export: `stored`, or those of the repetition."""
    from harness.export.remake import check_exportable

    wanted = seed if stored is None else stored.seed
    # The float model is planned beside others; alone it is what was asked for, and refused.
    cells = [each.cell for each in plan.cells if not each.cell.is_float and each.cell.seed == wanted]
    for cell in cells or [each.cell for each in plan.cells]:
        check_exportable(cell)
        if cell.key in plan.skips:
            raise UsageError(f"{cell.label} cannot be measured: {plan.skips[cell.key]}")
    if stored is not None and [cell.key for cell in cells] != [stored.key]:
        raise UsageError(
            f"the cell {stored.key[:16]} cannot be planned again: its model, data or options are others now; "
            "export it by its method's name instead"
        )
    return cells


def _as_recorded(cell: Cell) -> dict[str, Any]:
    """The fields of a `Request` that asks for the cell."""
    from harness.plan.plan import CLEAN

    parts = cell.options.get("parts", {})
    assert isinstance(parts, dict)
    # What the method's name has in brackets would be given twice.
    named = {part.name: part.changes for part in parse_name(cell.method)}
    given = {
        name: {option: value for option, value in values.items() if option not in named.get(name, {})}
        for name, values in ((part.partition(":")[2], values) for part, values in parts.items())
        if isinstance(values, dict)
    }
    return {
        "methods": (cell.method,),
        "models": (cell.model,),
        "bits": (cell.bits,),
        "schemes": (cell.scheme,),
        "tasks": (cell.task,),
        "suite": cell.suite,
        "seeds": cell.seed + 1,
        "limit": cell.limit,
        "corruptions": (cell.corruption or CLEAN,),
        "preset": cell.preset,
        "overrides": given,
    }
