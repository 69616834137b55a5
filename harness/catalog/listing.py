"""`list` and `describe`: what plugins say of themselves. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.api.errors import UsageError
from harness.api.plugins import KINDS, PRESETS, ExecutorInfo, PluginInfo
from harness.catalog.catalog import Catalog
from harness.catalog.registry import Registry, check_known
from harness.identity.cell import FLOAT
from harness.identity.names import Part

LISTED = ("methods", "models", "tasks", "executors")


def show_list(kind: str, catalog: Catalog, console: Console, executors: Callable[[], Registry[ExecutorInfo]]) -> None:
    """Print what there is of `kind`; `executors` is called only if they are asked for.

    Raises:
        UsageError: an unknown kind.
    """
    check_known("kind of list", kind, LISTED)
    if kind == "methods":
        _methods(catalog, console)
    elif kind == "models":
        _models(catalog, console)
    elif kind == "executors":
        _executors(executors(), console)
    else:
        _tasks(catalog, console)


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _methods(catalog: Catalog, console: Console) -> None:
    table = _table("name", "kind", "data", "trains", "origin", "summary")
    broken: dict[str, str] = {}
    for kind in KINDS:
        usable, unusable = catalog.of(kind).load_all()
        broken |= unusable
        for info in usable.values():
            between = kind in ("transform", "calibrator")
            needs = "from its source" if between else "data-free" if info.data == "none" else "images"
            table.add_row(info.name, info.kind, needs, info.trains, info.origin, escape(info.summary))
    console.print(table)
    console.print("Any source goes with any calibrator: --methods psaq+omse. 'float' is the unquantized model.")
    console.print("A transform may stand between them: --methods psaq+rotate+omse.", highlight=False)
    console.print("Options in brackets make a variant: --methods psaq[steps=100]+omse.", markup=False, highlight=False)
    _broken(broken, console)


def _models(catalog: Catalog, console: Console) -> None:
    table = _table("model", "task", "description")
    tasks, broken = catalog.tasks.load_all()
    for task in tasks.values():
        for name, summary in task.models.items():
            table.add_row(escape(name), task.name, escape(summary))
    console.print(table)
    _broken(broken, console)


def _tasks(catalog: Catalog, console: Console) -> None:
    table = _table("task", "suite", "description")
    tasks, broken = catalog.tasks.load_all()
    for task in tasks.values():
        table.add_row(task.name, "", escape(task.summary))
        for name, summary in task.suites.items():
            table.add_row("", name, escape(summary))
    console.print(table)
    _broken(broken, console)


def _executors(known: Registry[ExecutorInfo], console: Console) -> None:
    table = _table("executor", "accepts", "description")
    usable, broken = known.load_all()
    for info in usable.values():
        accepted = " ".join(f"--{name}" for name in info.accepts)
        table.add_row(escape(info.name), escape(accepted), escape(info.summary))
    console.print(table)
    console.print("bench --executor NAME chooses one; where cells run is no part of what they are.", highlight=False)
    _broken(broken, console)


def _broken(broken: Mapping[str, str], console: Console) -> None:
    for name, reason in broken.items():
        console.print(f"broken: {name}: {reason}", style="red", markup=False, highlight=False)


def show_description(text: str, catalog: Catalog, console: Console) -> None:
    """Print all that the plugins called `text` say, or those of a cross.

    Raises:
        UsageError: an unknown name, or options that do not fit.
    """
    text = text.strip()
    if text == FLOAT:
        console.print("float: the unquantized model, the reference of every table; it is always run.")
        return
    named = [catalog.of(kind).get(text) for kind in KINDS if text in catalog.of(kind)]
    if not named:
        named = list(catalog.resolve(text).infos)  # which checks the options in brackets
    for info in named:
        _describe(info, console)


def _describe(info: PluginInfo, console: Console) -> None:
    console.print(f"[bold]{escape(info.name)}[/] ({info.kind}): {escape(info.summary)}", highlight=False)
    facts = _table("", "")
    facts.show_header = False
    needs = "data-free (enforced)" if info.data == "none" else "training images without labels"
    between = info.kind in ("transform", "calibrator")
    facts.add_row("data", "only the images of its source" if between else needs)
    if info.kind in ("method", "calibrator"):
        facts.add_row("schemes", ", ".join(info.schemes))
        facts.add_row("mixed", "chooses layers' widths (MP4.5)" if info.mixed else "no: all layers have one width")
        facts.add_row("blocks", f"{info.blocks} in microscaling formats (MXFP4A8)" if info.blocks else "none")
        facts.add_row("trains", f"{info.trains}, by gradient descent" if info.trains else "nothing")
    facts.add_row("origin", info.origin)
    for name in ("paper", "code"):
        if getattr(info, name):
            facts.add_row(name, escape(str(getattr(info, name))))
    if info.partner:
        facts.add_row("alone", f"joined with {info.partner}")
    for deviation in info.deviations or ("none known",):
        facts.add_row("deviation", escape(deviation))
    console.print(facts)
    if not info.options.model_fields:
        console.print("no options\n")
        return
    table = _table("option", "type", *PRESETS, "meaning")
    values = []
    for preset in PRESETS:
        try:
            values.append(info.resolve(preset, {}).model_dump(mode="json"))
        except UsageError as error:
            raise UsageError(f"preset '{preset}' of {info.kind} '{info.name}' is broken: {error}") from None
    for name, field in info.options.model_fields.items():
        row = [name, _type(field.annotation), *(str(v[name]) for v in values), field.description or ""]
        table.add_row(*map(escape, row))
    console.print(table)
    _ablations(info, console)
    console.print()


def _type(annotation: Any) -> str:
    """A type as users would write it: the values of a literal, else its name."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join("None" if part is NoneType else _type(part) for part in get_args(annotation))
    return str(annotation) if get_args(annotation) else str(getattr(annotation, "__name__", annotation))


def _ablations(info: PluginInfo, console: Console) -> None:
    if not info.ablations:
        return
    table = _table("ablation", "variant")
    for preset in PRESETS:
        info.check_ablations(preset, {})
    for label, changes in info.ablations.items():
        table.add_row(escape(label), escape(str(Part(info.name, changes))))
    console.print(table)
