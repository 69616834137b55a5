"""Quantized networks as deployed: codes, what is a product of integers, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_networks import FakeContext, RandomImages, images, tiny_model

from harness.api.contracts import Deployable, Deployment
from harness.api.errors import UsageError
from harness.api.plugins import import_target
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.core.deployment.codes import Indexed, Step, stored_codes, uniform_step
from methods.core.numerics.granularity import PerBlock, PerChannel, PerHead
from methods.core.numerics.logarithmic import LogSqrt2
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized

SOFTMAXES = {"vit": 2, "swin": 4}
PRODUCTS = {"vit": 14, "swin": 27}


def quantized(
    method: str, net: str, bits: str, scheme: str, options: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Quantized, Deployment]:
    built = Catalog.default().resolve_all([method], "quick", options or {})[0].build()
    model = tiny_model(net)
    found = built.quantize(model, spec=BitSpec.parse(bits), scheme=scheme, calib=RandomImages(), ctx=FakeContext())
    assert isinstance(found, Deployable)
    return found, import_target(found.deployment)(found, model)


@pytest.mark.parametrize("net", ["vit", "swin"])
@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W3A6"])
def test_the_deployed_network_computes_the_quantized_one(net: str, scheme: str, bits: str) -> None:
    own, deployment = quantized("noise+minmax", net, bits, scheme)
    batch = images(20, seed=3)
    with torch.no_grad():
        expected, found = own(batch), deployment.module(batch)
    # The sum of a layer's bias is rounded apart from the product, which moves a code now and then.
    assert torch.equal(expected.argmax(1), found.argmax(1))
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.std()), rtol=0.0)


@pytest.mark.parametrize("net", ["vit", "swin"])
def test_what_is_a_product_of_integers(net: str) -> None:
    _, deployment = quantized("noise+minmax", net, "W8A8", "matmul")
    assert len(deployment.products) == PRODUCTS[net]
    assert all(product.integer and not product.why for product in deployment.products)
    # In scheme full the views between a stored result and a product change nothing, but softmax is in float.
    _, deployment = quantized("noise+minmax", net, "W8A8", "full")
    floats = [product for product in deployment.products if not product.integer]
    assert len(floats) == SOFTMAXES[net]
    assert all("softmax" in product.why and "/matmul." in product.op for product in floats)


def test_widths_up_to_four_bits_are_known_to_fit_in_four() -> None:
    for bits, width in (("W2A4", 4), ("W4A4", 4), ("W5A8", 8)):
        _, deployment = quantized("noise+minmax", "vit", bits, "matmul")
        assert set(deployment.codes.values()) == {width}
        names = dict(deployment.module.named_buffers())
        assert all(names[name].dtype == torch.int8 for name in deployment.codes)


@pytest.mark.parametrize("method", ["noise+repq", "noise+ptq4vit", "noise+baseptq", "noise+erq", "noise+adaround"])
def test_other_quantizers_run_in_float_and_say_so(method: str) -> None:
    own, deployment = quantized(method, "vit", "W4A4", "matmul")
    batch = images(20, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(deployment.module(batch), own(batch), atol=0.05, rtol=0.0)
    floats = {"noise+repq": 2, "noise+erq": 2, "noise+ptq4vit": 4}.get(method, 0)  # softmax.v, and what follows GELU
    assert sum(not product.integer for product in deployment.products) == floats
    assert len(deployment.unpacked) == (2 if method == "noise+ptq4vit" else 0)


@pytest.mark.parametrize(
    ("method", "bits", "why"),
    [
        ("noise+fqvit", "W8A8", "replaces operations"),
        ("noise+noisyquant", "W8A8", "replaces operations"),
        ("noise+minmax", "MXFP4A8", "stored in blocks"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(method: str, bits: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        quantized(method, "vit", bits, "matmul")


def test_weights_keep_the_codes_that_a_learned_rounding_chose() -> None:
    own, deployment = quantized("noise+adaround", "vit", "W4A8", "matmul")
    buffers = dict(deployment.module.named_buffers())
    parameters = dict(own.net.named_parameters())
    for name, quantizer in own.weights.items():
        stem = f"stored.{name.replace('.', '/')}"
        codes, zero, scale = (buffers[f"{stem}.{each}"] for each in ("codes", "zero_point", "scale"))
        linear = codes.shape != parameters[name].shape or parameters[name].dim() == 2
        axis = 1 if linear else 0
        shape = [-1 if i == axis else 1 for i in range(codes.dim())]
        values = (codes.float() - zero.float().view(shape)) * scale.view(shape)
        assert torch.equal(values.t() if linear else values, parameters[name])
        assert torch.equal(scale, quantizer.base.scale)  # type: ignore[attr-defined]


def test_codes_of_steps() -> None:
    x = torch.linspace(-3, 3, 101)
    for bits in range(2, 9):
        quantizer = Uniform.asymmetric(torch.tensor(-1.3), torch.tensor(2.1), bits)
        step = uniform_step(quantizer)
        assert isinstance(step, Step)
        assert torch.equal(step(x), quantizer(x))
        assert torch.equal(step.times(0.25)(x / 4), quantizer(x) / 4)
    heads = Uniform(torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.int32), -8, 7, PerChannel(1))
    found = uniform_step(heads)
    assert isinstance(found, Indexed)
    assert found.unit == Step(1.0, 8, -8, 7)
    uneven = Uniform(torch.tensor([0.1, 0.2]), torch.tensor([3, 4], dtype=torch.int32), 0, 15, PerChannel(1))
    assert uniform_step(uneven) is None
    assert uniform_step(LogSqrt2(torch.tensor(1.0), 16)) is None
    positive = Uniform(torch.tensor(0.1), torch.tensor(-3, dtype=torch.int32), 0, 15)  # codes 3 .. 18, and 0 is none
    assert uniform_step(positive) == Step(float(torch.tensor(0.1)), 0, 3, 18)
    assert uniform_step(Uniform(torch.tensor(0.1), torch.tensor(-3, dtype=torch.int32), 0, 255)) is None


def test_codes_of_weights() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pieces = PerHead(0, 2)
    halves = Uniform.asymmetric(*torch.stack([pieces.rows(weight).amin(1), pieces.rows(weight).amax(1)]), 4, pieces)
    found = stored_codes(halves(weight), halves, 0)
    assert found is not None
    assert (found.bits, found.codes.dtype, found.scale.shape) == (4, torch.int8, (6,))
    assert torch.equal(found.values(), halves(weight))
    blocks = PerBlock((6, 4))
    rows = blocks.rows(weight)
    assert stored_codes(weight, Uniform.asymmetric(rows.amin(1), rows.amax(1), 4, blocks), 0) is None
    channels = Uniform.symmetric(weight.amin(1), weight.amax(1), 8, PerChannel(0))
    assert stored_codes(weight, channels, 0) is None  # not rounded
