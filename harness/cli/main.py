"""The command line. Turns arguments into requests and errors into exit codes; decides nothing else.

Exit codes: 0 ok, 1 accuracy regression (`merge`: records that contradict each other), 2 usage or configuration, 3 some
cells failed (`merge`: some records cannot be used), 4 nothing measured, 70 an error of the program itself, 74 all went
well but its output could not be written (not of `regress`, nor where the reader has gone), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from harness.api.errors import UsageError
from harness.api.plugins import PRESETS
from harness.catalog.catalog import Catalog
from harness.catalog.registry import check_known
from harness.identity.names import parse_value, split_names, split_outside_brackets
from harness.io.streams import NO_OUTPUT, lost_output, tolerate
from harness.io.text import visible
from harness.plan.plan import ABLATION, RERUN, Request, make_plan

if TYPE_CHECKING:
    from harness.results.store import Store

USAGE, SOFTWARE, INTERRUPTED = 2, 70, 130
DEVICES = ("auto", "cpu", "cuda")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
HISTORY = Path("results/history.csv")
MOST_THREADS = 1024
LONGEST = 1_000_000  # seconds of a timeout; the operating system's own limit is not much higher
WIDTH = 140  # of tables that do not go to a terminal


class _Commands(TyperGroup):
    """Says a UsageError in one sentence on stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            typer.echo(f"Error: {visible(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted; every finished cell is kept, the same command goes on from there.", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_show_locals=False, help="Data-free quantization, measured."
)


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


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _split(text: str) -> tuple[str, ...]:
    return _once(part.strip() for part in text.split(","))


def _once(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_overrides(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.FIELD=VALUE` texts as a nested dict; a value is JSON, or else a string.

    Raises:
        UsageError: a text of another form.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        name, dot, option = path.strip().partition(".")
        if not (equals and dot and name and option):
            raise UsageError(f"--option '{text}' is not of the form NAME.FIELD=VALUE; for example psaq.steps=100")
        overrides.setdefault(name, {})[option] = parse_value(value)
    return overrides


Trust = Annotated[
    bool, typer.Option("--trust-configs", help="Configs that --models names may run code; see docs/dense.md.")
]


def _sweep(  # noqa: PLR0917 - typer passes them by name
    ctx: typer.Context,
    methods: Annotated[
        str,
        typer.Option(
            help="METHOD, SOURCE, CALIBRATOR or SOURCE+CALIBRATOR, each perhaps [OPTION=VALUE,...]; all crosses of some"
            " are '{SOURCE,SOURCE}+{CALIBRATOR,CALIBRATOR}', in quotes."
        ),
    ] = "clamp,psaq",
    ablation: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Run METHOD and its ablations (see `describe`) instead of --methods, without floor and ceiling;"
            " --bits W4A5 --seeds 3 --preset quick --out results/runs/SUITE-ablation unless given.",
        ),
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            help="Models, by comma; those of the suite if left out. timm:NAME@FILE is a checkpoint (`list models`)."
        ),
    ] = "",
    bits: Annotated[
        str, typer.Option(help="Bits of weights and activations, by comma; MP4.5 is mixed precision.")
    ] = "W8A8,W4A8,W4A4",
    schemes: Annotated[
        str,
        typer.Option(
            help="Which tensors are quantized: full, matmul; of detectors and segmentors perhaps of one part alone:"
            " full:backbone, matmul:backbone."
        ),
    ] = "full",
    tasks: Annotated[str, typer.Option(help="Tasks, by comma.")] = "classification",
    suite: Annotated[str, typer.Option(help="Data and models of the tasks; see `list tasks`.")] = "embedded",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the suite's data, if it needs one.")] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, with seeds 0 to N-1.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Evaluate on the first LIMIT images only.")] = None,
    preset: Annotated[str, typer.Option(help=f"Options of all methods: {', '.join(PRESETS)}.")] = "default",
    option: Annotated[list[str] | None, typer.Option(help="NAME.FIELD=VALUE; repeatable. See `describe`.")] = None,
    device: Annotated[str, typer.Option(help=f"{', '.join(DEVICES)}.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Results folder; results/runs/SUITE if left out.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of synthesized images.")] = Path("results/cache"),
    rerun: Annotated[
        str,
        typer.Option(help=f"What is measured again, with images from the cache if they are there: {', '.join(RERUN)}."),
    ] = "failed",
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a cell counts as failed.")] = None,
    executor: Annotated[
        str, typer.Option(help="Where cells run: worker (if left out), in-process, or one of an installed package.")
    ] = "",
    in_process: Annotated[bool, typer.Option("--in-process", help="No worker process: for debugging.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")] = None,
    no_references: Annotated[
        bool, typer.Option("--no-references", help="Leave out the floor and the ceiling (noise, real).")
    ] = False,
    sink: Annotated[str, typer.Option(help="Also report to a tracker: mlflow, wandb, trackio.")] = "",
    trust_configs: Trust = False,
) -> None:
    check_known("--device", device, DEVICES)
    if timeout is not None and not 0 < timeout <= LONGEST:
        raise UsageError(f"--timeout must be a number of seconds above 0 and at most {LONGEST:,}, not {timeout:g}")
    _check_threads(threads)
    request = Request(
        methods=_once(split_names(methods)),
        models=_once(map(str.strip, split_outside_brackets(models))),
        bits=_split(bits),
        schemes=_split(schemes),
        tasks=_split(tasks),
        suite=suite,
        data_root=data_root,
        seeds=seeds,
        limit=limit,
        preset=preset,
        overrides=parse_overrides(option or ()),
        references=not no_references,
        rerun=rerun,
        trust_configs=trust_configs,
    )
    if ablation:
        typed = {name for name in ABLATION if getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"}
        unset = {name: value for name, value in ABLATION.items() if name not in typed}
        request = replace(request, ablation=ablation, **unset)
    from harness.io.files import prepare_folder
    from harness.results.store import Store
    from harness.run.display import show_plan
    from harness.run.executors.registry import find_executor
    from harness.run.sinks import open_sink

    runs = find_executor(_executor(executor, in_process), timeout).name
    tracker = open_sink(sink) if sink else None
    store = Store(out or Path("results", "runs", f"{suite}-ablation" if ablation else suite))
    console = _console()
    catalog = Catalog.default()
    dry = ctx.info_name == "plan"
    _check_device(device)
    plan = make_plan(request, catalog, store)
    for text in store.sentences():
        typer.echo(text, err=True)
    if not dry:  # after planning, so that a mistyped name leaves no folder behind
        prepare_folder(store.folder, "--out")
        prepare_folder(cache, "--cache")
    show_plan(plan, console)
    if dry:
        return

    from harness.cli.bench import run_and_report
    from harness.run.runner import Settings

    root = data_root and data_root.absolute()
    settings = Settings(
        catalog, device, threads or _cores(), cache.absolute(), root, plan.requested, trust_configs, plan.skips
    )
    code = run_and_report(plan, store, settings, console, executor=runs, timeout=timeout, sink=tracker)
    raise typer.Exit(code)


app.command("bench", help="Measure methods and make the comparison table; what is there already is reused.")(_sweep)
app.command("plan", help="Show what `bench` would run with the same options; runs nothing.")(_sweep)


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="methods|models|tasks", help="What to list.")]) -> None:
    """List methods, models or tasks."""
    from harness.catalog.listing import show_list

    show_list(kind, Catalog.default(), _console())


@app.command()
def describe(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="a name from `list methods`, or SOURCE+CALIBRATOR")],
) -> None:
    """All about a method: paper, code, origin, options, deviations."""
    from harness.catalog.listing import show_description

    show_description(method, Catalog.default(), _console())


@app.command()
def check(
    plugin: Annotated[
        str, typer.Argument(metavar="NAME", help="a method, source, calibrator or task, also of a package")
    ],
) -> None:
    """Does a plugin keep its contract? Runs it on tiny random networks; ends with 3 if something is wrong."""
    from harness.check.plugin import check as look
    from harness.io.exit_codes import SOME_FAILED

    raise typer.Exit(0 if look(plugin, Catalog.default(), _console()) else SOME_FAILED)


@app.command()
def tables(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/runs/embedded"),
    published: Annotated[
        bool, typer.Option("--published", help="Also set published numbers beside those measured here.")
    ] = False,
) -> None:
    """Make the tables and figures of a results folder again."""
    from harness.report.write import write_tables

    write_tables(_measured(out), Catalog.default(), _console(), with_published=published)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/runs/embedded"),
    html: Annotated[Path | None, typer.Option(help="The page; OUT/report/report.html if left out.")] = None,
) -> None:
    """Make tables, figures and one page that holds them all, to be read offline in a browser."""
    from harness.report.write import write_page

    typer.echo(str(write_page(_measured(out), Catalog.default(), _console(), html)))


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


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Results folders.")],
    into: Annotated[Path, typer.Option(help="Folder that gets their records; it may have some.")],
) -> None:
    """Bring the records of several folders together; those that contradict each other are shown. Exit code 1 then."""
    from harness.results.merge import merge as bring
    from harness.results.merge import show

    raise typer.Exit(show(bring(folders, into), into, _console()))


@app.command()
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
    in_process: Annotated[bool, typer.Option("--in-process", help="No worker process: for debugging.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the suite's data, if it needs one.")] = None,
    trust_configs: Annotated[
        bool, typer.Option("--trust-configs", help="Configs that the suite names may run code; see docs/dense.md.")
    ] = False,
) -> None:
    """Measure the pinned suite and compare it, image by image, with the baseline; see docs/regression.md."""
    import os

    from harness.regress.gate import Options, run_gate

    _check_threads(threads)
    root, runs = data_root and data_root.absolute(), _executor("", in_process)
    options = Options(baseline, HISTORY, update_baseline, history, junit, out, threads, runs, root, trust_configs)
    try:
        code = run_gate(options, Catalog.default(), os.environ, _console())
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was compared.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


@app.command()
def history(
    figure: Annotated[Path, typer.Option(help="The figure, PNG or SVG.")] = Path("results/runs/history.png"),
) -> None:
    """Show where the pinned results changed their level, and draw them over the runs."""
    from harness.report.trend import show_history

    raise typer.Exit(show_history(HISTORY, figure, _console()))


@app.command()
def diagnose(  # noqa: PLR0917 - typer passes them by name
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/runs/embedded"),
    data_root: Annotated[Path | None, typer.Option(help="Folder of the suite's data, if it needs one.")] = None,
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
        models=_once(map(str.strip, split_outside_brackets(models))),
        bits=bits,
        site_images=site_images,
        trust_configs=trust_configs,
    ):
        typer.echo(str(path))
    for text in store.sentences():
        typer.echo(text, err=True)


def _executor(name: str, in_process: bool) -> str:
    """The name of the executor; `--in-process` is a short form of it."""
    if in_process and name not in ("", "in-process"):
        raise UsageError(f"--in-process and --executor {name} contradict each other; leave one out")
    return "in-process" if in_process else name or "worker"


def _check_device(device: str) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu")


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads must be 1 to {MOST_THREADS:,}, not {threads}")


def _cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cgroup v2) if there is one."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (int(number) for number in CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no such file, or `max`: no quota
        return cores
    return max(1, min(cores, quota // period)) if quota > 0 < period else cores
