"""`reproduce`: the table of a paper, planned by its recipe, measured like any sweep, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.cli.options import (
    Address,
    Cpus,
    DataRoot,
    Detach,
    Device,
    Executor,
    Gpus,
    ImageCache,
    InProcess,
    Jobs,
    Rerun,
    SlurmAsked,
    Threads,
    Timeout,
    Wait,
    make_console,
    once,
    split,
    where,
)
from harness.cli.sweep import carry_out
from harness.identity.names import split_outside_brackets

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan.reproduction import Reproduction
    from harness.results.store import Store


def reproduce(  # noqa: PLR0917 - typer passes them by name
    paper: Annotated[
        str, typer.Argument(metavar="PAPER", help="Name of a recipe in results/published/recipes: psaq, repq ...")
    ] = "",
    data_root: DataRoot = None,
    methods: Annotated[
        str, typer.Option(help="Methods of the paper's table, as it calls them, by comma; all if left out.")
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            help="Models of the table, by comma; all if left out. DeiT-S=timm:NAME@FILE takes another checkpoint."
        ),
    ] = "",
    bits: Annotated[str, typer.Option(help="Precisions of the table, by comma; all if left out.")] = "",
    seeds: Annotated[int | None, typer.Option(help="Repetitions; those of the recipe (3) if left out.")] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate on the first LIMIT images only.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Show what would run and how long it may take; run nothing.")] = (
        False
    ),
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Results folder; that of `bench` if left out.")] = None,
    cache: ImageCache = Path("results/cache"),
    rerun: Rerun = "failed",
    timeout: Timeout = None,
    executor: Executor = "",
    in_process: InProcess = False,
    jobs: Jobs = None,
    threads: Threads = None,
    address: Address = "",
    cpus: Cpus = None,
    gpus: Gpus = None,
    wait: Wait = None,
    slurm: SlurmAsked = "",
    detach: Detach = False,
    published: Annotated[
        Path | None, typer.Option(help="Folder of published numbers with recipes; results/published if left out.")
    ] = None,
) -> None:
    """Measure the table of a paper with its settings, and say which numbers come out; docs/reproduce-a-paper.md."""
    asked = where(
        executor=executor,
        in_process=in_process,
        device=device,
        threads=threads,
        cache=cache,
        timeout=timeout,
        jobs=jobs,
        address=address,
        cpus=cpus,
        gpus=gpus,
        slurm=slurm,
        detach=detach,
        wait=wait,
    )
    from harness.io.exit_codes import NOTHING_MEASURED
    from harness.plan.reproduction import Choice, plan_reproduction
    from harness.results.published import FOLDER, read
    from harness.results.recipes import SUITE, read_recipe, recipe_names
    from harness.results.store import Store

    catalog, console = Catalog.default(), make_console()
    folder = published or FOLDER
    known = recipe_names(folder)
    if not paper:
        raise UsageError(f"name a paper; there are recipes of {', '.join(known)}")
    if paper not in known and paper in catalog.method_names():
        raise UsageError(
            f"'{paper}' has no recipe, since no checked numbers of its paper on {SUITE} are in {folder}; there are "
            f"recipes of {', '.join(known)}"
        )
    recipe = read_recipe(paper, folder)
    checkpoints = _checkpoints(models)
    choice = Choice(
        methods=split(methods),
        models=tuple(checkpoints),
        bits=split(bits),
        checkpoints={name: model for name, model in checkpoints.items() if model},
        data_root=data_root,
        seeds=seeds,
        limit=limit,
        rerun=rerun,
    )
    store = Store(out or Path("results", "runs", SUITE))
    reproduction = plan_reproduction(recipe, read(folder), choice, catalog, store)
    _show(reproduction, console)
    code = carry_out(reproduction.plan, store, catalog, console, asked, data_root=data_root, dry=dry)
    if not (dry or detach or code == NOTHING_MEASURED):
        _report(paper, reproduction, store, catalog, console)
    raise typer.Exit(code)


def _checkpoints(models: str) -> dict[str, str]:
    """The models that `--models` names, each with the checkpoint behind its `=`, which is empty if there is none.

    Raises:
        UsageError: one side of a `=` is empty, or a model has two checkpoints.
    """
    found: dict[str, str] = {}
    for text in once(map(str.strip, split_outside_brackets(models))):
        name, equals, model = (part.strip() for part in text.partition("="))
        if not name or (equals and not model):
            raise UsageError(f"'{text}' in --models is not of the form NAME or NAME=MODEL; for example DeiT-S")
        if found.setdefault(name, model) != model:
            both = " and ".join(each or "the usual one" for each in (found[name], model))
            raise UsageError(
                f"--models has two checkpoints for {name} ({both}); name one, and the other in another run"
            )
    return found


def _show(reproduction: Reproduction, console: Console) -> None:
    """What is reproduced and how, before it costs hours."""
    from harness.io.text import visible
    from harness.report.sections.reproduced import behind

    count = len(reproduction.targets)
    lines = [f"{reproduction.recipe.paper}: {count} {'number' if count == 1 else 'numbers'} of its table."]
    for title, sentences in behind(reproduction):
        lines += [f"{title}:", *(f"- {sentence}" for sentence in sentences)] if sentences else []
    for line in lines:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def _report(paper: str, reproduction: Reproduction, store: Store, catalog: Catalog, console: Console) -> None:
    """Print the table, and write it beside the others."""
    from harness.io.files import prepare_folder, writing_report
    from harness.report.results import load
    from harness.report.sections import reproduced

    frame = reproduced.reproduced(reproduction, load(store, catalog, reproduction.plan.keys).cells)
    text = reproduced.markdown(reproduction, frame)
    folder = store.folder / "report"
    prepare_folder(folder, "--out")
    with writing_report(folder):
        for suffix, content in (("md", text), ("csv", reproduced.csv(frame))):
            (folder / f"reproduced_{paper}.{suffix}").write_text(content, encoding="utf-8", newline="\n")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
