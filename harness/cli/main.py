"""The command line. Turns arguments into requests and errors into exit codes; decides nothing else.

Exit codes: 0 ok, 1 accuracy regression (`merge`: records that contradict each other; `export`: a file that a runtime
computes otherwise), 2 usage or configuration, 3 some cells failed (`merge`: some records cannot be used; `check`: the
plugin breaks its contract), 4 nothing measured, 70 an error of the program itself, 74 all went well but its output
could not be written (not of `regress`, nor where the reader has gone), 130 interrupted.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.cli.commands import INTERRUPTED, SOFTWARE, Command, Commands
from harness.cli.export import export
from harness.cli.options import (
    DataRoot,
    InProcess,
    ResultsFolder,
    Trust,
    check_threads,
    executor_name,
    make_console,
    once,
)
from harness.cli.reproduce import reproduce
from harness.cli.sweep import sweep
from harness.identity.names import split_outside_brackets
from harness.io.streams import NO_OUTPUT, lost_output, tolerate

if TYPE_CHECKING:
    from harness.api.plugins import ExecutorInfo
    from harness.catalog.registry import Registry
    from harness.results.store import Store

HISTORY = Path("results/history.csv")


app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_show_locals=False, help="Data-free quantization, measured."
)
command = partial(app.command, cls=Command)


def main() -> None:
    """Entry point of `dfqbench` and `python -m harness`."""
    tolerate()
    code: Any = SOFTWARE
    try:
        app()
    except SystemExit as end:  # how typer ends every command
        code = end.code
    except Exception as error:  # Python's own exit code would be 1, which means an accuracy regression
        sys.excepthook(type(error), error, error.__traceback__)  # typer's, if it is installed
    lost = lost_output()
    if lost is not None:
        typer.echo(f"Error: part of the output could not be written ({lost.strerror}).", err=True)
        # What was measured is kept, and the gate's verdict is its exit code: neither depends on who reads.
        code = code or (NO_OUTPUT if "regress" not in sys.argv[1:2] else 0)
    sys.exit(code)


command("bench", help="Measure methods and make the comparison table; what is there already is reused.")(sweep)
command("plan", help="Show what `bench` would run with the same options; runs nothing.")(sweep)

command("export")(export)

command("reproduce")(reproduce)


@command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="methods|models|tasks|executors", help="What to list.")]) -> None:
    """List methods, models, tasks or executors."""
    from harness.catalog.listing import show_list

    show_list(kind, Catalog.default(), make_console(), _executors)


def _executors() -> Registry[ExecutorInfo]:
    from harness.run.executors.registry import executors

    return executors()


@command()
def describe(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="a name from `list methods`, or SOURCE+CALIBRATOR")],
) -> None:
    """All about a method: paper, code, origin, options, deviations."""
    from harness.catalog.listing import show_description

    show_description(method, Catalog.default(), make_console())


@command()
def check(
    plugin: Annotated[
        str, typer.Argument(metavar="NAME", help="a method, source, transform, calibrator or task, also of a package")
    ],
) -> None:
    """Does a plugin keep its contract? Runs it on tiny random networks; ends with 3 if something is wrong."""
    from harness.check.plugin import check as look
    from harness.io.exit_codes import SOME_FAILED

    raise typer.Exit(0 if look(plugin, Catalog.default(), make_console()) else SOME_FAILED)


@command()
def tables(
    out: ResultsFolder = Path("results/runs/embedded"),
    published: Annotated[
        bool, typer.Option("--published", help="Also set published numbers beside those measured here.")
    ] = False,
) -> None:
    """Make the tables and figures of a results folder again."""
    from harness.report.write import write_tables

    write_tables(_measured(out), Catalog.default(), make_console(), with_published=published)


@command()
def report(
    out: ResultsFolder = Path("results/runs/embedded"),
    html: Annotated[Path | None, typer.Option(help="The page; OUT/report/report.html if left out.")] = None,
) -> None:
    """Make tables, figures and one page that holds them all, to be read offline in a browser."""
    from harness.report.write import write_page

    typer.echo(str(write_page(_measured(out), Catalog.default(), make_console(), html)))


def _measured(out: Path) -> Store:
    """The results in `out`; ends the program if nothing was measured there."""
    from harness.io.exit_codes import NOTHING_MEASURED
    from harness.io.files import is_folder
    from harness.results.store import Store

    if not is_folder(out):
        raise UsageError(f"there is no results folder {out}; run bench first or give another --out")
    store = Store(out)
    if not any(record.status == "ok" for record in store.records()):
        for text in store.sentences():
            typer.echo(text, err=True)
        typer.echo(f"Error: nothing was measured in {out}.", err=True)
        raise typer.Exit(NOTHING_MEASURED)
    return store


@command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results folder of `bench --executor slurm`.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
) -> None:
    """Show how far the jobs of a cluster are that measure into a results folder."""
    from harness.run.executors.slurm.show import watch as look

    look(folder, make_console(), once=once)


@command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Results folders.")],
    into: Annotated[Path, typer.Option(help="Folder that gets their records; it may have some.")],
) -> None:
    """Bring the records of several folders together; those that contradict each other are shown. Exit code 1 then."""
    from harness.results.merge import merge as bring
    from harness.results.merge import show

    raise typer.Exit(show(bring(folders, into), into, make_console()))


@command()
def regress(  # noqa: PLR0917 - typer passes them by name
    baseline: Annotated[
        Path, typer.Option(help="The baseline; the suite is the TOML file of the same name beside it.")
    ] = Path("results/baselines/embedded.json"),
    update_baseline: Annotated[
        str | None, typer.Option(metavar="WHY", help="Renew the baseline with what is measured now, and say why.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdicts as JUnit XML.")] = None,
    history: Annotated[
        str | None, typer.Option(metavar="LABEL", help=f"Also add a row per case to {HISTORY}, as renewing does.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the records here; measured anew all the same.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; those of the suite if left out.")] = None,
    in_process: InProcess = False,
    data_root: DataRoot = None,
    trust_configs: Annotated[
        bool, typer.Option("--trust-configs", help="Configs that the suite names may run code; see docs/dense.md.")
    ] = False,
) -> None:
    """Measure the pinned suite and compare it, image by image, with the baseline; see docs/regression.md."""
    import os

    from harness.regress.gate import Options, run_gate

    check_threads(threads)
    root, runs = data_root and data_root.absolute(), executor_name("", in_process)
    options = Options(baseline, HISTORY, update_baseline, history, junit, out, threads, runs, root, trust_configs)
    try:
        code = run_gate(options, Catalog.default(), os.environ, make_console())
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was compared.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


@command()
def history(
    figure: Annotated[Path, typer.Option(help="The figure, PNG or SVG.")] = Path("results/runs/history.png"),
) -> None:
    """Show where the pinned results changed their level, and draw them over the runs."""
    from harness.report.trend import show_history

    raise typer.Exit(show_history(HISTORY, figure, make_console()))


@command()
def diagnose(  # noqa: PLR0917 - typer passes them by name
    out: ResultsFolder = Path("results/runs/embedded"),
    data_root: DataRoot = None,
    models: Annotated[str, typer.Option(help="Models as given to bench, by comma; all if left out.")] = "",
    bits: Annotated[str, typer.Option(help="Precision to look at; that with the most methods if left out.")] = "",
    site_images: Annotated[
        int, typer.Option(min=0, help="Also quantize every activation site alone, on this many real training images.")
    ] = 0,
    trust_configs: Trust = False,
) -> None:
    """Look at the stored images of a results folder with the float models: how similar are their patches?"""
    from harness.report.diagnose import diagnose as look

    store = _measured(out)
    for path in look(
        store,
        Catalog.default(),
        data_root=data_root,
        models=once(map(str.strip, split_outside_brackets(models))),
        bits=bits,
        site_images=site_images,
        trust_configs=trust_configs,
    ):
        typer.echo(str(path))
    for text in store.sentences():
        typer.echo(text, err=True)
