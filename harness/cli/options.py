"""What options of several commands share: their declarations, what their texts mean, and which values are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.registry import check_known
from harness.identity.names import parse_value
from harness.plan.plan import RERUN

if TYPE_CHECKING:
    from harness.run.executors.base import Resources

LONGEST = 1_000_000  # seconds of a timeout; the operating system's own limit is not much higher
MOST_JOBS = 10_000
MOST_GPUS = 64
MOST_THREADS = 1024
WIDTH = 140  # of tables that do not go to a terminal
PRESET = "quick"  # what commands that measure cells take unless told otherwise
DEVICES = ("auto", "cpu", "cuda")

Trust = Annotated[
    bool, typer.Option("--trust-configs", help="Configs that --models names may run code; see docs/dense.md.")
]
ALL = "all"
Limit = Annotated[
    str | None,
    typer.Option(
        metavar=f"N|{ALL}",
        help="Evaluate on the first N images; of classification on embedded, made for a first look, 1000 if left out,"
        " else all.",
    ),
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the suite's data, if it needs one.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="No worker process: for debugging.")]
ResultsFolder = Annotated[Path, typer.Option(help="Results folder.")]

# Where and how cells run.
Device = Annotated[str, typer.Option(help=f"{', '.join(DEVICES)}.")]
ImageCache = Annotated[Path, typer.Option(help="Folder of synthesized images.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds after which a cell counts as failed.")]
Executor = Annotated[
    str, typer.Option(help="Where cells run: worker if left out; `list executors` shows all. See docs/scale.md.")
]
Jobs = Annotated[int | None, typer.Option(help="Cells at a time; one for each GPU, else for each core if left out.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each cell; what the jobs leave to each if left out.")]
Address = Annotated[str, typer.Option(help="Cluster of the executor, if it has one.")]
Cpus = Annotated[int | None, typer.Option(help="CPUs of each host of a cluster.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of each host of a cluster; below 1, hosts share one.")]
Wait = Annotated[
    float | None, typer.Option(help="Seconds after which a cluster without a free host is an error; 600 if left out.")
]
SlurmAsked = Annotated[str, typer.Option(help="What Slurm is asked for: NAME=VALUE, by comma.")]
Detach = Annotated[bool, typer.Option("--detach", help="Submit to the cluster and end.")]
Rerun = Annotated[
    str, typer.Option(help=f"What is measured again, with images from the cache if they are there: {', '.join(RERUN)}.")
]


def split(text: str) -> tuple[str, ...]:
    """The parts of a text between commas, each once."""
    return once(part.strip() for part in text.split(","))


def typed(ctx: typer.Context, name: str) -> bool:
    """Whether the user gave the option, rather than its default."""
    return getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"


def once(parts: Iterable[str]) -> tuple[str, ...]:
    """The parts that are not empty, each once."""
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_overrides(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.FIELD=VALUE` texts as a nested dict; a value is JSON, or else a string.

    Raises:
        UsageError: a text of another form, or two for one option.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        name, dot, option = path.strip().partition(".")
        if not (equals and dot and name and option):
            raise UsageError(f"--option '{text}' is not of the form NAME.FIELD=VALUE; for example psaq.steps=100")
        of_plugin = overrides.setdefault(name, {})
        if option in of_plugin:
            raise UsageError(f"--option {name}.{option} is given twice, of which one would be ignored; give it once")
        of_plugin[option] = parse_value(value)
    return overrides


def executor_name(name: str, in_process: bool) -> str:
    """The name of the executor; `--in-process` is a short form of it.

    Raises:
        UsageError: the two contradict each other.
    """
    if in_process and name not in ("", "in-process"):
        raise UsageError(f"--in-process and --executor {name} contradict each other; leave one out")
    return "in-process" if in_process else name or "worker"


def check_device(device: str) -> None:
    """See to it that torch has the device.

    Raises:
        UsageError: it has not.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu")


def check_threads(threads: int | None) -> None:
    """See to it that a number of threads is sensible.

    Raises:
        UsageError: it is not.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads must be 1 to {MOST_THREADS:,}, not {threads}")


def resources(
    *,
    timeout: float | None,
    jobs: int | None,
    address: str,
    cpus: int | None,
    gpus: float | None,
    slurm: str,
    detach: bool,
    wait: float | None,
) -> Resources:
    """What the user says of where cells run.

    Raises:
        UsageError: a value out of range, or of another form.
    """
    from harness.run.executors.base import Resources

    for name, seconds in (("timeout", timeout), ("wait", wait)):
        if seconds is not None and not 0 < seconds <= LONGEST:
            raise UsageError(f"--{name} must be a number of seconds above 0 and at most {LONGEST:,}, not {seconds:g}")
    for name, number, most in (("jobs", jobs, MOST_JOBS), ("cpus", cpus, MOST_THREADS)):
        if number is not None and not 1 <= number <= most:
            raise UsageError(f"--{name} must be 1 to {most:,}, not {number}")
    if gpus is not None and not 0 < gpus <= MOST_GPUS:
        raise UsageError(f"--gpus must be above 0 and at most {MOST_GPUS}, not {gpus:g}; leave it out for CPUs alone")
    asked: dict[str, str] = {}
    for part in split(slurm):
        text, equals, value = part.partition("=")
        name = text.strip().replace("_", "-")  # as Slurm spells it
        if not (equals and name and value.strip()):
            raise UsageError(f"--slurm '{part}' is not of the form NAME=VALUE; for example partition=gpu,time=120")
        if name in asked:
            raise UsageError(f"--slurm gives {name} twice, {asked[name]} and {value.strip()}; leave one out")
        asked[name] = value.strip()
    return Resources(timeout, jobs, address or None, cpus, gpus, asked, detach, wait)


@dataclass(frozen=True)
class Where:
    """Where and how cells run, as the user says it. Made by `where`, which has checked it."""

    executor: str
    asked: Resources
    device: str
    threads: int | None
    cache: Path


def where(*, executor: str, in_process: bool, device: str, threads: int | None, cache: Path, **of_hosts: Any) -> Where:
    """What the options of a command that measures say; `of_hosts` are those of `resources`.

    Raises:
        UsageError: a value out of range or of another form, or something that is not there.
    """
    from harness.run.executors.registry import find_executor

    check_known("--device", device, DEVICES)
    check_threads(threads)
    asked = resources(**of_hosts)
    found = find_executor(executor_name(executor, in_process), asked)
    if "gpus" not in found.accepts:  # else cells run on other machines
        check_device(device)
    return Where(found.name, asked, device, threads, cache)


def make_console() -> Console:
    """Where a command prints; wide enough for the tables where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def images(limit: str | None) -> dict[str, Any]:
    """What `--limit` says, or its being left out, as fields of a `Request`.

    Raises:
        UsageError: neither a number nor all.
    """
    if limit is None or limit == ALL:
        return {"first_look": limit is None}
    if not re.fullmatch(r"-?\d{1,18}", limit, re.ASCII):
        raise UsageError(f"--limit must be a number of images or '{ALL}', not '{limit}'")
    return {"limit": int(limit)}
