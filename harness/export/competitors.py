"""What others make of the same float model on this machine, for the same table: honest company for the numbers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.export.onnx_file import INPUT
from harness.export.remake import Remade
from harness.export.runtimes.onnx_runtime import OnnxRuntime
from harness.export.speed import in_turns
from harness.results.exported import Competitor

if TYPE_CHECKING:
    import numpy as np

Run = Callable[["np.ndarray"], "list[np.ndarray]"]


def competitors(remade: Remade, plain: Path, threads: int, image: np.ndarray | None) -> list[Competitor]:
    """Onnxruntime's own static quantization, calibrated on the method's images, and OpenVINO's float model as it runs
    by default, which on some processors is in bfloat16. Of whole classifiers only.
    """
    if remade.model.part is not None or image is None:
        return []
    found = []
    with tempfile.TemporaryDirectory(prefix="dfqbench-export-") as folder:
        static = Path(folder, "static.onnx")
        if _quantize_static(remade, plain, static):
            name = "onnxruntime's quantize_static, 8 bits, on the same images"
            run = OnnxRuntime().open(static, threads)
            found.append(_measured(name, remade, run, image, static.stat().st_size))
        if find_spec("openvino") is not None:
            name = "openvino's float model, its default precision"
            found.append(_measured(name, remade, _openvino(plain, threads), image, None))
    return found


def _measured(name: str, remade: Remade, run: Run, image: np.ndarray, size: int | None) -> Competitor:
    import torch

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(run(images.detach().cpu().contiguous().numpy())[0])

    evaluation = remade.suite.evaluate(remade.model, forward, remade.cell.limit)
    walls, processors = in_turns([run], image[None])
    metrics = {metric: float(value) for metric, value in evaluation.metrics.items()}
    return Competitor(name=name, size=size, metrics=metrics, cpu_ms=processors[0], ms=walls[0])


def _quantize_static(remade: Remade, plain: Path, path: Path) -> bool:
    """Whether it could be done: it needs images, and a method keeps up to sixteen of them."""
    import numpy as np

    images = remade.measured.images
    if images is None:
        return False
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    mean, std = (np.asarray(each, np.float32) for each in (remade.model.mean, remade.model.std))
    batches = [(((each / np.float32(255)) - mean) / std).astype(np.float32).transpose(2, 0, 1)[None] for each in images]

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]  # it may have no types
        def __init__(self) -> None:
            self._left: Iterator[Any] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    logging.disable(logging.WARNING)  # it advises
    try:
        quantize_static(
            str(plain),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception:  # a competitor that fails is left out
        return False
    finally:
        logging.disable(logging.NOTSET)
    return True


def _openvino(plain: Path, threads: int) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(str(plain), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda images: [value.copy() for value in compiled([images]).values()]
