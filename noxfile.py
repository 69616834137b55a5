"""Everything one does with the project, as nox sessions: `nox -l` lists them, `nox -s NAME -- ARGS` passes ARGS on.

All sessions run in one environment, `.nox/shared-<python version>`, so that torch is installed once. It is built by
the Python that runs nox and updated only when pyproject.toml or constraints.txt changes; delete `.nox` to start afresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.default_venv_backend = "none"  # the sessions bring the shared environment themselves

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".nox" / f"shared-{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "installed.sha256"


def install(session: nox.Session) -> str:
    """Make the shared environment if it is missing or out of date; return its Python."""
    if sys.version_info < (3, 11):  # noqa: UP036 - nox may run on an older one than the project
        session.error(f"Python 3.11 or newer is needed, nox runs on {sys.version.split()[0]}")
    requirements = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    wanted = hashlib.sha256(requirements).hexdigest()
    if not PYTHON.exists() or not STAMP.exists() or STAMP.read_text() != wanted:
        # The stamp goes first and comes back last: an installation that fails or is interrupted is done again.
        STAMP.unlink(missing_ok=True)
        if not PYTHON.exists():
            # virtualenv comes with nox, and unlike venv it needs no ensurepip, which some distributions leave out.
            session.run(sys.executable, "-m", "virtualenv", "--clear", "--quiet", str(ENVIRONMENT))
        pip = (str(PYTHON), "-m", "pip", "--disable-pip-version-check")
        session.run(*pip, "install", "--editable", ".[dev,dense,ray]", "--constraint", "constraints.txt")
        # mmcv asks for the OpenCV that opens windows, which needs a system library that servers lack. Both own the same
        # files, so the other one is written anew even if it was there.
        session.run(*pip, "uninstall", "--yes", "opencv-python")
        headless = ("opencv-python-headless", "--constraint", "constraints.txt")
        session.run(*pip, "install", "--force-reinstall", "--no-deps", *headless)
        STAMP.write_text(wanted)
    return str(PYTHON)


def run_harness(session: nox.Session, command: str) -> None:
    """Run `python -m harness COMMAND ARGS` and end nox with its exit code.

    nox itself ends with 1 whatever a command returned, but the harness's codes differ: 0 ok, 1 accuracy regression,
    2 usage or configuration, 3 some cells failed, 4 nothing measured, 130 interrupted. Sessions queued behind it do
    not run then.
    """
    python = install(session)
    with subprocess.Popen([python, "-m", "harness", command, *session.posargs]) as process:
        while (code := process.poll()) is None:
            with contextlib.suppress(KeyboardInterrupt):  # the harness gets it too, and ends in its own time
                process.wait()
    if code:
        raise SystemExit(code if code > 0 else 128 - code)  # killed by signal n: 128 + n, as shells have it


@nox.session
def bench(session: nox.Session) -> None:
    """Quantize, evaluate, compare: nox -s bench -- --methods clamp,psaq"""
    run_harness(session, "bench")


@nox.session
def tables(session: nox.Session) -> None:
    """Write tables, figure and galleries again from the stored results; computes nothing."""
    run_harness(session, "tables")


@nox.session
def report(session: nox.Session) -> None:
    """Write the tables again and all of them as one page for a browser: nox -s report -- --out FOLDER"""
    run_harness(session, "report")


@nox.session
def regress(session: nox.Session) -> None:
    """Measure the pinned suite and compare it with the committed baseline, image by image; ends with 1 if it moved."""
    run_harness(session, "regress")


@nox.session
def export(session: nox.Session) -> None:
    """Write a cell's model as an ONNX file that computes with integers: nox -s export -- clamp --models vit"""
    run_harness(session, "export")


@nox.session
def reproduce(session: nox.Session) -> None:
    """Measure a paper's table with its settings and judge it: nox -s reproduce -- repq --data-root DIR"""
    run_harness(session, "reproduce")


@nox.session
def history(session: nox.Session) -> None:
    """Draw the pinned results over the runs of results/history.csv, with changes of level marked."""
    run_harness(session, "history")


@nox.session
def merge(session: nox.Session) -> None:
    """Bring results folders together, conflicts shown: nox -s merge -- FOLDER FOLDER --into FOLDER"""
    run_harness(session, "merge")


@nox.session
def diagnose(session: nox.Session) -> None:
    """Look at the stored images with the float models: patch similarity figures beside the tables."""
    run_harness(session, "diagnose")


@nox.session
def data(session: nox.Session) -> None:
    """Download CIFAR-10 (163 MiB), which suite cifar10 runs on, unless it is there."""
    session.run(install(session), "-m", "tasks.suites.cifar10.dataset", *session.posargs)


@nox.session
def zoo(session: nox.Session) -> None:
    """Train the models that come with the project again (hours); shows its options with -- --help."""
    session.run(install(session), "-m", "tasks.training.cli", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, a process per core: nox -s tests -- PYTEST'S ARGUMENTS; -m "not slow" leaves out what is long."""
    # Neighbours of a file stay in one process as far as possible, as many share what is made once per file, such as a
    # Ray cluster: with more processes than cores more of it is made twice, which costs what the waiting gains.
    spread = ("--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal")
    session.run(install(session), "-m", "pytest", *spread, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hostile files and command lines: nox -s fuzz -- --cases 5000 --seed 1, or --kills 100."""
    session.run(install(session), "tests/fuzz/run.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff, and who imports whom with import-linter."""
    python = install(session)
    session.run(python, "-m", "ruff", "check", *session.posargs)
    session.run(python, "-m", "ruff", "format", "--check")
    session.run(python, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types with mypy, strictly on harness/ and methods/."""
    session.run(install(session), "-m", "mypy", *session.posargs)


@nox.session
def families(session: nox.Session) -> None:
    """Find out what works with each of timm's models (an hour): tasks/models/timm_families.json and docs/models.md."""
    session.run(install(session), "tests/perf/families.py", *session.posargs)


@nox.session
def perf(session: nox.Session) -> None:
    """Measure the project's performance claims as ratios (about 12 GiB of memory at the default batch of 32)."""
    session.run(install(session), "tests/perf/measure.py", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Hold every method on CUDA against the CPU and time DeiT-S, in 8 minutes; -- --device cpu rehearses it."""
    session.run(install(session), "tests/devices/gpu.py", *session.posargs, success_codes=[0, 3, 4])
