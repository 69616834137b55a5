"""onnxruntime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError, first_line
from harness.export.onnx_file import INPUT, operations
from harness.export.runtimes.base import Session, in_pieces

if TYPE_CHECKING:
    import numpy as np

# Its kernels that multiply codes of eight bits. MatMulNBits is not among them: it quantizes activations by itself.
INTEGER = frozenset(
    ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "ConvInteger")
) | frozenset(("QLinearConv", "QLinearConvTranspose"))
_FLOAT = frozenset(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "ConvTranspose", "MatMulNBits"))
_QUIET = 3  # errors alone


class OnnxRuntime:
    """The supported runtime."""

    name = "onnxruntime"
    package = "onnxruntime"
    supported = True

    def version(self) -> str:
        """See `Runtime`."""
        return version(self.package)

    def open(self, path: Path, threads: int) -> Session:
        """See `Runtime`."""
        return _Session(_session(path, threads))

    def script(self, path: Path) -> str:
        """See `Runtime`."""
        return (
            "import onnxruntime\n"
            f"session = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
            "run = lambda x: session.run(None, {session.get_inputs()[0].name: x})"
        )

    def kernels(self, path: Path, products: Sequence[str]) -> Mapping[str, tuple[str, bool]]:
        """See `Runtime`: nodes keep their names when they are fused."""
        with tempfile.TemporaryDirectory(prefix="dfqbench-export-") as folder:
            optimized = Path(folder, "optimized.onnx")
            _session(path, 1, optimized)
            found = operations(optimized, products, INTEGER | _FLOAT)
        return {name: (kernel, kernel in INTEGER) for name, kernel in found.items()}


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        first = session.get_inputs()[0].shape[0]
        self._size = first if isinstance(first, int) else None

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return in_pieces(lambda piece: self._session.run(None, {INPUT: piece}), images, self._size)


def _session(path: Path, threads: int, optimized: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting would be measured as work
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UsageError(f"onnxruntime {onnxruntime.__version__} cannot load {path} ({first_line(error)})") from error
