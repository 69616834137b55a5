"""Where a number was made: code, versions, hardware, git. Decides whether a record is stale."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harness.record import Provenance

_ROOT = Path(__file__).resolve().parent
_HARNESS_FILES = ("cell.py", "compose.py", "contracts.py", "context.py", "runner.py", "seeds.py", "spec.py")
# Beside the cells' way: what makes weights and data (whose own hashes are in the cell), and what looks at results.
_TOOLS = frozenset(
    [
        *(_ROOT.parent / "tasks" / n for n in ("zoo_cli.py", "classifier_zoo.py", "cifar/train.py")),
        *(_ROOT.parent / "tasks" / "embedded" / f"{n}.py" for n in ("train", "train_dense", "make_subset")),
        _ROOT.parent / "methods" / "diagnostics.py",
    ]
)
_PACKAGES = [
    "dfqbench",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "safetensors",
    "pyarrow",
    "mmengine",
    "mmcv",
    "mmcv-lite",
    "mmdet",
    "mmsegmentation",
    "faster-coco-eval",
    "pycocotools",
]
# Variables of the environment that choose code paths of BLAS, oneDNN, OpenMP or torch, and so the order of rounding.
_VARIABLES = ("ATEN_", "BLIS_", "CUBLAS_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")
_VARIABLES_ALSO = ("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_DECISIVE = ("torch", "timm")  # a change of these can change a number


@cache
def code_fingerprint(packages: frozenset[str]) -> str:
    """SHA-256 over the Python sources that numbers depend on.

    `packages` are the top-level packages of the plugins that take part: the project's own, or third parties'. Cached,
    since an edit while the process runs does not change the code that is already imported.
    """
    files = [_ROOT / name for name in _HARNESS_FILES]
    for package in sorted({"methods", "tasks", *packages}):
        files += _sources(package)
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.parent.name}/{path.name}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _sources(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    found = {path.resolve() for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py")}
    return sorted(found - _TOOLS)


def packages_of(targets: Iterable[str]) -> frozenset[str]:
    """Top-level packages of plugin targets (`package.module:attribute`)."""
    return frozenset(target.partition(":")[0].partition(".")[0] for target in targets)


def is_stale(record: Provenance, code: str) -> bool:
    """Whether other code or decisive versions than the present ones made the record."""
    return record.code != code or {name: record.versions.get(name) for name in _DECISIVE} != decisive_versions()


def decisive_versions() -> dict[str, str | None]:
    """Present versions of the packages a change of which can change a number."""
    return {name: versions().get(name) for name in _DECISIVE}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, without importing them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def collect(code: str, device: str, threads: int) -> Provenance:
    """Provenance of a number made now, in this process."""
    hardware = dict(_hardware())
    if "torch" in sys.modules:  # a failure may be recorded by a process that does not need it
        import torch

        hardware["instructions"] = torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        import torch

        # After a CUDA error every call into CUDA raises, and the failure itself must still be recorded.
        with contextlib.suppress(Exception):
            hardware["gpu"] = torch.cuda.get_device_name(device)
    return Provenance(
        code=code,
        versions=versions(),
        hardware=hardware,
        device=device,
        threads=threads,
        git=_git_state(),
        variables={name: value for name, value in sorted(os.environ.items()) if _chooses_arithmetic(name)},
    )


def _chooses_arithmetic(name: str) -> bool:
    return name.startswith(_VARIABLES) or name in _VARIABLES_ALSO


@cache
def _hardware() -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {"machine": platform.machine(), "system": platform.system()}
    found["processor"] = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            found["processor"] = names[0]
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return found


@dataclass(frozen=True)
class Revision:
    """The project's own commit: hash, committer's date (ISO 8601, UTC) and whether tracked files differ from it."""

    commit: str
    date: str
    modified: bool


@cache
def revision() -> Revision | None:
    """The commit that this code is of; None outside of the project's own repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Only this project's own repository counts, not one that happens to hold the installation.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT.parent:
            return None
        commit, seconds = git("show", "--no-patch", "--format=%H %ct", "HEAD").split()
        date = datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="seconds")
        return Revision(commit, date, bool(git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _git_state() -> dict[str, str | bool] | None:
    found = revision()
    return None if found is None else {"commit": found.commit, "modified": found.modified}
