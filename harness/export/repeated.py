"""Constants whose rows repeat, such as a window's position biases and masks, stored once for each different row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

_LEAST = 1 << 14  # bytes, below which it is not worth a node
_SHARE = 0.5  # of the size that may be left


def gather_rows(model: onnx.ModelProto) -> None:
    """Store float constants by their different rows (along the last axis) and which of them each row is, where that
    takes at most half the space. Runtimes put them together when the file is loaded, and compute the same afterwards.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for found in list(model.graph.initializer):
        if found.data_type != TensorProto.FLOAT or len(found.dims) < 2 or 4 * np.prod(found.dims) < _LEAST:
            continue
        values = numpy_helper.to_array(found)
        rows, index = _different(values)
        if rows.nbytes + index.nbytes > _SHARE * values.nbytes:
            continue
        names = [f"{found.name}.rows", f"{found.name}.index"]
        model.graph.initializer.remove(found)
        model.graph.initializer.extend(map(numpy_helper.from_array, (rows, index), names))
        node = helper.make_node("Gather", names, [found.name], name=f"{found.name}.gather", axis=0)
        model.graph.node.insert(0, node)


def _different(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows, (n, last axis), in the order in which they come, and the number of each row."""
    import numpy as np

    numbers: dict[bytes, int] = {}
    rows = values.reshape(-1, values.shape[-1])
    index = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    different = np.frombuffer(b"".join(numbers), values.dtype).reshape(-1, values.shape[-1])
    return different, np.array(index, np.int32).reshape(values.shape[:-1])
