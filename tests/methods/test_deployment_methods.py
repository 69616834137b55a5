"""Every method with uniform quantizers as deployed: it computes what the quantized network does."""

from __future__ import annotations

import pytest
import torch
from test_deployment import quantized
from tiny_networks import images

METHODS = (
    *("noise+minmax", "noise+ema", "noise+percentile", "noise+omse", "psaq", "clamp", "noise+repq", "noise+erq"),
    *("noise+dopqvit", "noise+uqvit", "noise+mptq"),
    *("noise+baseptq", "noise+ptq4vit", "noise+adaround", "noise+brecq"),
)
# Layers and matrix products of the tiny ViT that run in float: softmax by values, and the second layer behind GELU.
FLOATS = {"noise+repq": 2, "noise+dopqvit": 2, "noise+erq": 2, "noise+ptq4vit": 4, "noise+mptq": 4}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast(method="noise+omse")
def test_a_method_is_deployed_as_it_computes(method: str) -> None:
    own, deployment = quantized(method, "vit", "MP4.5" if method in {"clamp", "noise+mptq"} else "W4A6", "matmul")
    batch = images(20, seed=3)
    with torch.no_grad():
        expected, found = own(batch), deployment.module(batch)
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.std()), rtol=0.0)
    floats = [product for product in deployment.products if not product.integer]
    assert len(floats) == FLOATS.get(method, 0), [product.why for product in floats]
