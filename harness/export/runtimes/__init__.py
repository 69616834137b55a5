"""Programs that run exported files, one module each; what an export needs is found here by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from harness.api.errors import UsageError
from harness.catalog.registry import check_known
from harness.export.runtimes.base import Runtime
from harness.export.runtimes.onnx_runtime import OnnxRuntime
from harness.export.runtimes.open_vino import OpenVino

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (OnnxRuntime(), OpenVino())}
_WRITING = ("onnx", "onnxscript", "ml_dtypes")


def check_installed() -> None:
    """See to it that files can be written and run.

    Raises:
        UsageError: packages are missing.
    """
    missing = [name for name in (*_WRITING, OnnxRuntime.package) if find_spec(name) is None]
    if missing:
        raise UsageError(f"export needs {', '.join(missing)}: pip install 'dfqbench[export]'")


def runtimes(names: Sequence[str]) -> list[Runtime]:
    """The runtimes of these names, which have to be installed.

    Raises:
        UsageError: one is unknown, or not installed.
    """
    found = []
    for name in names:
        check_known("runtime", name, RUNTIMES)
        if find_spec(RUNTIMES[name].package) is None:
            raise UsageError(f"runtime '{name}' is not installed: pip install {RUNTIMES[name].package}")
        found.append(RUNTIMES[name])
    return found
