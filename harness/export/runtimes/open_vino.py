"""OpenVINO on the CPU: experimental, since its results of scheme `full` are known to be wrong for some networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError, first_line
from harness.export.runtimes.base import Session, in_pieces

if TYPE_CHECKING:
    import numpy as np

_CODES = ("u8", "i8")


class OpenVino:
    """Reads the same files; float32 is asked for, where its default on some processors is bfloat16."""

    name = "openvino"
    package = "openvino"
    supported = False

    def version(self) -> str:
        """See `Runtime`."""
        return version(self.package)

    def open(self, path: Path, threads: int) -> Session:
        """See `Runtime`."""
        return _Session(_compiled(path, threads))

    def script(self, path: Path) -> str:
        """See `Runtime`."""
        return f"import openvino\nrun = openvino.Core().compile_model({str(path)!r}, 'CPU')"

    def kernels(self, path: Path, products: Sequence[str]) -> Mapping[str, tuple[str, bool]]:
        """See `Runtime`: of a fused layer it tells the names of all that went into it."""
        found: dict[str, tuple[str, bool]] = {}
        wanted = set(products)
        for node in _compiled(path, 1).get_runtime_model().get_ops():
            info = {name: str(value.value) for name, value in node.get_rt_info().items() if name in _TOLD}
            kernel, precision = info.get("layerType", "?"), info.get("runtimePrecision", "?").strip("'\"")
            for name in {*info.get("originalLayersNames", "").split(","), node.get_friendly_name()} & wanted:
                found[name] = f"{kernel} {precision}", precision in _CODES
        return found


_TOLD = ("layerType", "runtimePrecision", "originalLayersNames")


class _Session:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        first = compiled.input(0).get_partial_shape()[0]
        self._size = first.get_length() if first.is_static else None

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return in_pieces(self._run, images, self._size)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        return [value.copy() for value in self._compiled([images]).values()]


def _compiled(path: Path, threads: int) -> Any:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    try:
        return openvino.Core().compile_model(str(path), "CPU", options)
    except Exception as error:  # its errors have no common class
        raise UsageError(f"openvino {openvino.__version__} cannot compile {path} ({first_line(error)})") from error
