"""Where a number was made: code, versions, hardware, git. Decides whether a record is stale."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from harness.identity.code import Code
from harness.results.record import Provenance

if TYPE_CHECKING:
    import torch

_ROOT = Path(__file__).resolve().parents[2]
# Told in every record, whether they count for it or not.
_PACKAGES = (
    *("dfqbench", "torch", "torchvision", "timm", "numpy", "scipy", "safetensors", "pyarrow"),
    *("mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation", "faster-coco-eval", "pycocotools"),
)
# Variables of the environment that choose code paths of BLAS, oneDNN, OpenMP or torch, and so the order of rounding.
_VARIABLES = ("ATEN_", "BLIS_", "CUBLAS_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")
_VARIABLES_ALSO = ("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
# Of these, what changes nothing: torch is told the number of threads, where they run and how they wait is no
# arithmetic, and a GPU is told by its name.
_HARMLESS = frozenset(
    (
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
        *("OMP_PLACES", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME"),
    )
)


def is_stale(record: Provenance, code: Code) -> bool:
    """Whether other code, or other versions of what it depends on, than the present ones made the record."""
    return record.code != code.fingerprint or any(
        name not in record.versions or told(record.versions[name], name) != present for name, present in code.versions
    )


def told(version: str, name: str) -> str:
    """A package's version as far as it counts: of Python the first two numbers."""
    return ".".join(version.split(".")[:2]) if name == "python" else version


def arithmetic_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment that choose the order of rounding."""
    return {name: value for name, value in sorted(variables.items()) if _chooses_arithmetic(name)}


def told_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment that records tell, whether they choose the order of rounding or not."""
    return {name: value for name, value in sorted(variables.items()) if _is_told(name)}


def processor_of(device: torch.device) -> dict[str, str]:
    """What computes: the GPU by its name, or the CPU with the instructions that torch uses."""
    import torch

    if device.type == "cuda":
        return {"device": "cuda", "gpu": torch.cuda.get_device_name(device)}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": device.type, "processor": str(_hardware()["processor"]), "instructions": instructions}


def this_processor() -> str:
    """The name of this machine's processor, as records have it."""
    return str(_hardware()["processor"])


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


def collect(code: Code, device: str, threads: int) -> Provenance:
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
        code=code.fingerprint,
        versions={**dict(code.versions), **versions()},
        decisive=[name for name, _ in code.versions],
        hardware=hardware,
        device=device,
        threads=threads,
        git=_git_state(),
        variables=told_variables(os.environ),
    )


def _is_told(name: str) -> bool:
    return name.startswith(_VARIABLES) or name in _VARIABLES_ALSO


def _chooses_arithmetic(name: str) -> bool:
    return _is_told(name) and name not in _HARMLESS


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
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT:
            return None
        commit, seconds = git("show", "--no-patch", "--format=%H %ct", "HEAD").split()
        date = datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="seconds")
        return Revision(commit, date, bool(git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _git_state() -> dict[str, str | bool] | None:
    found = revision()
    return None if found is None else {"commit": found.commit, "modified": found.modified}
