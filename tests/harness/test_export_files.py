"""Exported files: codes are torch's, products are of integers, weights are packed; what is refused."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from harness.api.contracts import Deployment, VisionModel
from harness.api.images import probes
from harness.api.plugins import import_target
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.export.codes import compare_codes
from harness.export.onnx_file import write_float, write_quantized
from harness.export.repeated import gather_rows
from harness.export.runtimes import RUNTIMES
from harness.run.unchanged import Snapshot
from tasks.classification.suite import open_suite

# Integer kernels of onnxruntime among all layers and matrix products: the patch embedding is in float, its bias apart,
# and softmax is in scheme full.
KERNELS = {
    ("vit", "matmul"): (13, 14),
    ("vit", "full"): (11, 14),
    ("swin", "matmul"): (26, 27),
    ("swin", "full"): (22, 27),
}
IMAGES = 60


class _Context:
    """What the minimal methods of these tests ask of a run."""

    scope: ClassVar[dict[str, object]] = {}

    def generator(self, *names: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def cached_images(self, identity, make, by=None):
        return make()

    def __getattr__(self, name: str):
        from contextlib import nullcontext

        return lambda *_, **__: nullcontext()


def deployment(method: str, net: str, bits: str, scheme: str) -> tuple[VisionModel, Deployment, object]:
    model = open_suite("tiny").load(net, torch.device("cpu"))
    built = Catalog.default().resolve_all([method], "quick", {})[0].build()
    quantized = built.quantize(model, spec=BitSpec.parse(bits), scheme=scheme, calib=None, ctx=_Context())
    return model, import_target(quantized.deployment)(quantized, model), quantized


@pytest.mark.slow
@pytest.mark.usual(net="vit", bits=["W8A8", "W4A4"])
@pytest.mark.usual(net="swin", bits="W4A4")
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4A4"])
@pytest.mark.parametrize("scheme", ["matmul", "full"])
@pytest.mark.parametrize("net", ["vit", "swin"])
def test_a_file_computes_with_the_codes_of_torch(tmp_path, net: str, scheme: str, bits: str) -> None:
    model, deployed, quantized = deployment("noise+minmax", net, bits, scheme)
    path = tmp_path / "model.onnx"
    write_quantized(deployed, probes(model, 2), path, {"cell": "0123"})
    images = probes(model, IMAGES)
    codes = compare_codes(path, deployed.module, images)
    assert codes is not None
    assert codes.share > 99.9  # a last bit of a sum moves a code now and then, and some behind it
    assert codes.near_share > 99.99
    runtime = RUNTIMES["onnxruntime"]
    kernels = runtime.kernels(path, [product.op for product in deployed.products])
    assert set(kernels) == {product.op for product in deployed.products}
    integer, total = KERNELS[net, scheme]
    assert (sum(whole for _, whole in kernels.values()), len(kernels)) == (integer, total)
    assert "MatMulNBits" not in {kernel for kernel, _ in kernels.values()}
    with torch.no_grad():
        expected, plain = quantized(images).numpy(), model.net(images).numpy()
    (found,) = runtime.open(path, 1)(images.numpy())
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95
    assert np.square(found - expected).mean() < 0.1 * np.square(expected - plain).mean()


@pytest.mark.slow
def test_weights_of_four_bits_are_packed_and_what_is_in_float_has_no_dequantization(tmp_path) -> None:
    import onnx

    model, deployed, quantized = deployment("noise+ptq4vit", "vit", "W4A8", "matmul")
    path, plain = tmp_path / "model.onnx", tmp_path / "float.onnx"
    write_quantized(deployed, probes(model, 2), path, {"cell": "0123", "mean": "[0.5]"})
    write_float(model.net, probes(model, 2), plain, {})
    written = onnx.load(str(path))
    kinds = Counter(each.data_type for each in written.graph.initializer if "codes" in each.name)
    assert set(kinds) == {onnx.TensorProto.INT4}
    assert {each.key: each.value for each in written.metadata_props} == {"cell": "0123", "mean": "[0.5]"}
    assert not any(node.doc_string or node.metadata_props for node in written.graph.node)
    kernels = RUNTIMES["onnxruntime"].kernels(path, [product.op for product in deployed.products])
    assert "MatMulNBits" not in {kernel for kernel, _ in kernels.values()}
    assert kernels["blocks.0.mlp.fc2/linear.0"] == ("MatMul", False)  # behind GELU, whose quantizer has two steps
    images = probes(model, 7)  # another number than it was traced with
    with torch.no_grad():
        expected, floats = quantized(images).numpy(), model.net(images).numpy()
    np.testing.assert_allclose(RUNTIMES["onnxruntime"].open(path, 1)(images.numpy())[0], expected, atol=1e-3)
    np.testing.assert_allclose(RUNTIMES["onnxruntime"].open(plain, 1)(images.numpy())[0], floats, atol=1e-4)


@pytest.mark.parametrize("part", [None, "layers.1"])
def test_the_network_is_afterwards_what_it_was(tmp_path, part) -> None:
    """torch's exporter sets attributes anew; the next cell of a command was refused for it, as its method's doing."""
    model = open_suite("tiny").load("swin", torch.device("cpu"))
    before = Snapshot(model.net)
    images = probes(model, 2)
    if part is not None:
        with torch.no_grad():
            images = model.net.layers[0](model.net.patch_embed(images))
    write_float(model.net.get_submodule(part or ""), images, tmp_path / "float.onnx", {})
    assert before.change(Snapshot(model.net)) is None


def test_a_deployed_network_is_afterwards_what_it_was(tmp_path) -> None:
    model, deployed, _ = deployment("noise+minmax", "swin", "W4A8", "full")
    before = Snapshot(model.net)
    write_quantized(deployed, probes(model, 2), tmp_path / "model.onnx", {})
    assert before.change(Snapshot(model.net)) is None
    assert write_quantized(deployed, probes(model, 2), tmp_path / "again.onnx", {}) is None
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_constants_whose_rows_repeat_are_stored_once(tmp_path) -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    table, weight = rng.normal(size=(9, 12)).astype(np.float32), rng.normal(size=(400, 12)).astype(np.float32)
    bias = table[rng.integers(0, 9, (4, 100))]
    whole = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 100, 12]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(weight, "weight")]
    nodes = [
        helper.make_node("Reshape", ["weight", "shape"], ["same"]),
        helper.make_node("Add", ["bias", "same"], ["both"]),
        helper.make_node("Add", ["x", "both"], ["y"]),
    ]
    constants.append(numpy_helper.from_array(np.array([4, 100, 12]), "shape"))
    graph = helper.make_graph(nodes, "graph", whole[:1], whole[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    gather_rows(model)
    sizes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    assert sizes == {"weight": (400, 12), "shape": (3,), "bias.rows": (9, 12), "bias.index": (4, 100)}
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.normal(size=(4, 100, 12)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x + (bias + weight.reshape(4, 100, 12)))
