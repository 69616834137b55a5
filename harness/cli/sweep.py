"""`bench` and `plan`: one set of options, read into a request for cells; `plan` stops where `bench` measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.api.errors import UsageError
from harness.api.plugins import PRESETS
from harness.catalog.catalog import Catalog
from harness.cli.options import (
    PRESET,
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
    Limit,
    Rerun,
    SlurmAsked,
    Threads,
    Timeout,
    Trust,
    Wait,
    Where,
    images,
    make_console,
    once,
    parse_overrides,
    split,
    typed,
    where,
)
from harness.identity.names import split_names, split_outside_brackets
from harness.plan.plan import ABLATION, CLEAN, FITTED_SCHEME, Request, make_plan

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan.plan import Plan
    from harness.results.store import Store
    from harness.run.sinks import Sink


def sweep(  # noqa: PLR0917 - typer passes them by name
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
            f" --bits {','.join(ABLATION['bits'])} --seeds {ABLATION['seeds']} --out results/runs/SUITE-ablation"
            " unless given.",
        ),
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            help="Models, by comma; those of the suite if left out. timm:NAME@FILE is a checkpoint (`list models`)."
        ),
    ] = "",
    bits: Annotated[
        str,
        typer.Option(
            help="Bits of weights and activations, by comma; MP4.5 is mixed precision, MXFP4A8 has weights in blocks."
        ),
    ] = "W8A8,W4A8,MP4.5",
    fitted: Annotated[
        str,
        typer.Option(
            help="Bits at which images are run under repq, whose ranges fit them, where min-max ranges clip by chance;"
            " in scheme matmul unless --schemes is given. None if --bits is given."
        ),
    ] = "W4A4",
    schemes: Annotated[
        str,
        typer.Option(
            help="Which tensors are quantized: full, matmul; of detectors and segmentors perhaps of one part alone:"
            " full:backbone, matmul:backbone."
        ),
    ] = "full",
    tasks: Annotated[str, typer.Option(help="Tasks, by comma.")] = "classification",
    suite: Annotated[str, typer.Option(help="Data and models of the tasks; see `list tasks`.")] = "embedded",
    data_root: DataRoot = None,
    seeds: Annotated[
        int,
        typer.Option(
            help="Repetitions, with seeds 0 to N-1; one gives no verdict."
            f" {ABLATION['seeds']} of an ablation if left out."
        ),
    ] = 5,
    limit: Limit = None,
    corruptions: Annotated[
        str,
        typer.Option(
            help="What evaluation images (never calibration images) go through, by comma: clean, gaussian-blur:3 ..."
            " (classification; severities 1 to 5 of ImageNet-C)."
        ),
    ] = CLEAN,
    preset: Annotated[str, typer.Option(help=f"Options of all methods: {', '.join(PRESETS)}.")] = PRESET,
    option: Annotated[list[str] | None, typer.Option(help="NAME.FIELD=VALUE; repeatable. See `describe`.")] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Results folder; results/runs/SUITE if left out.")] = None,
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
    no_references: Annotated[
        bool, typer.Option("--no-references", help="Leave out the floor and the ceiling (noise, real).")
    ] = False,
    sink: Annotated[str, typer.Option(help="Also report to a tracker: mlflow, wandb, trackio.")] = "",
    trust_configs: Trust = False,
) -> None:
    """Plan what the options ask for, and unless the command is `plan`, measure and report it."""
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
    request = Request(
        methods=once(split_names(methods)),
        models=once(map(str.strip, split_outside_brackets(models))),
        bits=split(bits),
        bits_typed=typed(ctx, "bits"),
        fitted=split(fitted) if typed(ctx, "fitted") or not typed(ctx, "bits") else (),
        fitted_schemes=split(schemes) if typed(ctx, "schemes") else (FITTED_SCHEME,),
        schemes=split(schemes),
        tasks=split(tasks),
        suite=suite,
        data_root=data_root,
        seeds=seeds,
        **images(limit),
        corruptions=split(corruptions),
        preset=preset,
        overrides=parse_overrides(option or ()),
        references=not no_references,
        rerun=rerun,
        trust_configs=trust_configs,
    )
    if ablation:
        unset = {name: value for name, value in ABLATION.items() if not typed(ctx, name)}
        request = replace(request, ablation=ablation, **unset)
    from harness.results.store import Store
    from harness.run.sinks import open_sink

    if sink and detach:
        raise UsageError("--sink and --detach contradict each other, since no result comes back; leave one out")
    tracker = open_sink(sink) if sink else None
    store = Store(out or Path("results", "runs", f"{suite}-ablation" if ablation else suite))
    console = make_console()
    catalog = Catalog.default()
    dry = ctx.info_name == "plan"
    plan = make_plan(request, catalog, store)
    code = carry_out(
        plan,
        store,
        catalog,
        console,
        asked,
        data_root=data_root,
        trust_configs=trust_configs,
        tracker=tracker,
        dry=dry,
    )
    raise typer.Exit(code)


def carry_out(
    plan: Plan,
    store: Store,
    catalog: Catalog,
    console: Console,
    asked: Where,
    *,
    data_root: Path | None,
    trust_configs: bool = False,
    tracker: Sink | None = None,
    dry: bool = False,
) -> int:
    """Show a plan and, unless it is `dry`, measure and report it; the exit code.

    Raises:
        UsageError: a folder cannot be written, the executor cannot be had, or what it is asked for contradicts itself.
    """
    from harness.io.exit_codes import OK
    from harness.io.files import prepare_folder
    from harness.run.display import show_plan
    from harness.run.executors.registry import HERE, divided
    from harness.run.image_cache import prepare_cache
    from harness.run.machine import computes

    for text in store.sentences():
        typer.echo(text, err=True)
    hosts, threads, text = divided(asked.executor, asked.device, asked.asked, asked.threads)
    if not dry:  # after planning, so that a mistyped name leaves no folder behind
        prepare_folder(store.folder, "--out")
        prepare_cache(asked.cache, "--cache")
    at_home = asked.executor in HERE
    show_plan(plan, console, hosts.jobs or (1 if at_home else None), computes(asked.device) if at_home else None)
    if plan.todo:
        console.print(text)
    if dry:
        return OK

    from harness.cli.bench import run_and_report
    from harness.run.runner import Settings

    root = data_root and data_root.absolute()
    kept, made = store.folder.absolute(), asked.cache.absolute()
    settings = Settings(catalog, asked.device, threads, made, root, plan.requested, trust_configs, plan.skips, kept)
    return run_and_report(plan, store, settings, console, executor=asked.executor, resources=hosts, sink=tracker)
