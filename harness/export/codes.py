"""Whether the codes in a file are torch's: every quantization in it against that of the module it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.export.onnx_file import INPUT

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass(frozen=True)
class Codes:
    """Of all codes of activations: how many there are, are equal, and are at most one apart."""

    total: int
    equal: int
    near: int

    @property
    def share(self) -> float:
        """Of those that are equal, in points."""
        return 100.0 * self.equal / max(1, self.total)

    @property
    def near_share(self) -> float:
        """Of those that are at most one apart, in points."""
        return 100.0 * self.near / max(1, self.total)


def compare_codes(path: Path, module: nn.Module, images: Tensor) -> Codes | None:
    """The file, run by onnxruntime without optimizations, against the module on normalised `images`.

    A last bit that sums differ by moves a value over a boundary now and then, and the step spreads from layer to layer:
    some codes differ by one, few by more.

    Returns:
        None if the file has other quantizations than the module.
    """
    import numpy as np

    ours, theirs = _of_module(module, images), _of_file(path, images.numpy())
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return None
    apart = [np.abs(one.astype(np.int16) - other.astype(np.int16)) for one, other in zip(ours, theirs, strict=True)]
    total, equal, near = (sum(int(count(each)) for each in apart) for count in (np.size, _equal, _near))
    return Codes(total, equal, near)


def _equal(apart: np.ndarray) -> int:
    return int((apart == 0).sum())


def _near(apart: np.ndarray) -> int:
    return int((apart <= 1).sum())


def _of_module(module: nn.Module, images: Tensor) -> list[np.ndarray]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import harness.api.integers  # noqa: F401 - registers the operators

    found: list[np.ndarray] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.dfqbench.quantize.default:
                found.append(result.numpy().copy())
            return result

    watch = Watch()  # type: ignore[no-untyped-call]  # torch's modes have no types
    with torch.no_grad(), watch:
        module(images)
    return found


def _of_file(path: Path, images: np.ndarray) -> list[np.ndarray]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load(str(path))
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {INPUT: images})
    return found
