"""Writes a module as an ONNX file: integer operators, weights in four bits where they fit, names that can be read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError
from harness.export.repeated import gather_rows

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from harness.api.contracts import Deployment

OPSET = 21  # the first whose (de)quantization takes int4
INPUT = "images"
_MULTIPLYING = ("MatMul", "Gemm", "Conv", "ConvTranspose")


def write_float(net: nn.Module, images: Tensor, path: Path, said: Mapping[str, str]) -> None:
    """The float network as a file; `said` is written into it.

    Args:
        net: in eval mode, on the CPU.
        images: two or more normalised ones, by which it is traced.
        path: the file.
        said: metadata.

    Raises:
        UsageError: torch cannot export it.
    """
    # torch's exporter sets attributes of the network that it runs anew, with equal values; the next cell needs the one
    # that was loaded.
    _save(_translated(copy.deepcopy(net), images), path, said)


def write_quantized(deployment: Deployment, images: Tensor, path: Path, said: Mapping[str, str]) -> int | None:
    """A deployed model as a file, its layers and products named as the operations that they are.

    Returns:
        How many images the file takes at once, None if any number.

    Raises:
        UsageError: torch cannot export it, or the file has not the products that the model has.
    """
    model = _translated(deployment.module, images)
    found = [node for node in model.graph.node if node.op_type in _MULTIPLYING]
    if len(found) != len(deployment.products):
        raise UsageError(
            f"the ONNX file has {len(found)} layers and matrix products where the model has "
            f"{len(deployment.products)}: this version of torch or onnxscript writes it in another way"
        )
    for node, product in zip(found, deployment.products, strict=True):
        node.name = product.op
    for name, bits in deployment.codes.items():
        if name in deployment.unpacked:
            _unpack(model, name)
        if bits <= 4:
            _pack(model, name)
    _save(model, path, said)
    return _at_once(model)


def _at_once(model: onnx.ModelProto) -> int | None:
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    number: int = first.dim_value
    return number if first.HasField("dim_value") else None


def _translated(module: nn.Module, images: Tensor) -> onnx.ModelProto:
    import onnxscript
    import torch

    import harness.api.integers  # noqa: F401 - registers the operators

    operators = torch.ops.dfqbench
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        operators.quantize.default: _quantize,
        operators.dequantize.default: _dequantize,
        operators.dequantize_channels.default: _dequantize_channels,
    }
    assert onnxscript
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _exported(module, images),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=table,
                input_names=[INPUT],
                verbose=False,
            )
    except Exception as error:  # whatever torch's exporter meets in a network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"torch cannot export the network ({type(error).__name__}: {first})") from error
    assert program is not None
    return program.model_proto


def _exported(module: nn.Module, images: Tensor) -> Any:
    """The network for any number of images; for one where it computes with their number in plain Python, as mmdet's
    and mmseg's Swin do.
    """
    import torch

    # Not strict: the network runs as Python, under the modes that intercept it.
    try:
        return torch.export.export(module, (images,), strict=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception:  # torch has no public class for it; whatever else is wrong is met again
        return torch.export.export(module, (images[:1].clone(),), strict=False)


# --- the operators of `harness.api.integers` in ONNX ------------------------------------------------------------


def _quantize(x: Any, scale: float, zero_point: int, low: int, high: int) -> Any:
    import numpy as np
    from onnxscript import opset21 as op

    step = np.float32(scale)
    if (low, high) != (-zero_point, 255 - zero_point):
        # Fewer codes than eight bits have: clipped before, since runtimes fuse a quantization that stands alone.
        x = op.Clip(x, _constant(np.float32(low) * step), _constant(np.float32(high) * step))
    return op.QuantizeLinear(x, _constant(step), _constant(np.uint8(zero_point)))


def _dequantize(codes: Any, scale: float, zero_point: int) -> Any:
    import numpy as np
    from onnxscript import opset21 as op

    return op.DequantizeLinear(codes, _constant(np.float32(scale)), _constant(np.uint8(zero_point)))


def _dequantize_channels(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    from onnxscript import opset21 as op

    return op.DequantizeLinear(codes, scale, zero_point, axis=axis)


def _constant(value: Any) -> Any:
    from onnx import numpy_helper
    from onnxscript import opset21 as op

    return op.Constant(value=numpy_helper.from_array(value))


# --- how weights are stored -------------------------------------------------------------------------------------


def _pack(model: onnx.ModelProto, name: str) -> None:
    """Store codes in four bits, and make eight of them when the file is loaded.

    Left to itself, a runtime takes four-bit weights as a sign that activations are to stay in float.
    """
    import ml_dtypes
    import numpy as np
    from onnx import helper, numpy_helper

    found = _initializer(model, name)
    codes = numpy_helper.to_array(found)
    signed = codes.dtype == np.int8
    kind = ml_dtypes.int4 if signed else ml_dtypes.uint4
    packed = numpy_helper.from_array(codes.astype(kind), f"{name}.packed")
    cast = helper.make_node("Cast", [packed.name], [name], name=f"{name}.unpack", to=found.data_type)
    model.graph.initializer.remove(found)
    model.graph.initializer.append(packed)
    model.graph.node.insert(0, cast)


def _unpack(model: onnx.ModelProto, name: str) -> None:
    """Multiply codes by their steps by other means than a dequantization.

    That of a weight whose product is in float is taken as a sign too: for a product of integers of the runtime's own
    making. So it becomes a cast, a difference and a product, which are folded when the file is loaded.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for node in [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == name]:
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        rank = len(_initializer(model, name).dims)
        shape = [-1 if i == axis else 1 for i in range(rank)]
        zero = numpy_helper.to_array(_initializer(model, node.input[2])).astype(np.float32).reshape(shape)
        scale = numpy_helper.to_array(_initializer(model, node.input[1])).reshape(shape)
        stem = node.output[0]
        steps = [helper.make_node("Cast", [name], [f"{stem}.float"], to=TensorProto.FLOAT)]
        if zero.any():
            model.graph.initializer.append(numpy_helper.from_array(zero, f"{stem}.zero"))
            steps.append(helper.make_node("Sub", [f"{stem}.float", f"{stem}.zero"], [f"{stem}.centred"]))
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale), f"{stem}.scale"))
        steps.append(helper.make_node("Mul", [steps[-1].output[0], f"{stem}.scale"], [stem]))
        at = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for i, step in enumerate(steps):
            step.name = f"{stem}.step{i}"
            model.graph.node.insert(at + i, step)


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(each for each in model.graph.initializer if each.name == name)
    return found


# --- the file ---------------------------------------------------------------------------------------------------


def _save(model: onnx.ModelProto, path: Path, said: Mapping[str, str]) -> None:
    """Write the model without the exporter's notes, which are as large as a small network."""
    import onnx
    from onnx import helper

    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    _drop_unused(model)
    gather_rows(model)
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    model.producer_name = "dfqbench"
    helper.set_model_props(model, dict(said))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for found in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(found)


def operations(path: Path, names: Sequence[str], kinds: Collection[str]) -> dict[str, str]:
    """What became of the named operations in an optimized model: name -> type of the node that has it now.

    Where an optimization gave nodes of `kinds` new names, they are the operations that are missing, in their order, if
    there are as many.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    wanted = set(names)
    found = {node.name: node.op_type for node in model.graph.node if node.name in wanted}
    missing = [name for name in names if name not in found]
    renamed = [node.op_type for node in model.graph.node if node.op_type in kinds and node.name not in wanted]
    return found | dict(zip(missing, renamed, strict=True)) if len(missing) == len(renamed) else found
