"""Every method with an integer form as deployed: it computes what the quantized network does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_deployment import quantized
from tiny_networks import images

# How long a method trains does not matter here: options that make it short.
FEW: dict[str, dict[str, Any]] = {
    "psaq": {"images": 8, "rounds": 1, "steps": 3},
    "psaq2": {"images": 8, "rounds": 1, "steps": 3, "alternations": 1, "image_steps": 2, "student_steps": 2},
    "clamp": {
        **{"images": 4, "rounds": 1, "steps": 1, "population": 3, "passes": 1, "cycles": 1},
        **{"refresh_steps": 1, "held_out_steps": 1},
    },
    "isvit": {"steps": 2, "wide_steps": 2},
    "uqvit": {"softmax": "demax"},
    **{name: {"steps": 3} for name in ("adaround", "brecq", "qdrop", "aphq", "fimaq", "lsvit", "glfq")},
}
METHODS = (
    *("noise+minmax", "noise+ema", "noise+percentile", "noise+omse", "psaq", "clamp", "noise+repq", "noise+erq"),
    *("noise+baseptq", "noise+ptq4vit", "noise+adaround", "noise+brecq", "psaq2", "noise+qdrop", "noise+aphq"),
    *("noise+fimaq", "noise+lsvit", "noise+isvit", "noise+glfq", "noise+dopqvit", "noise+mptq"),
    *("noise+uqvit", "noise+trio", "noise+gptq", "noise+clamp-search", "noise+adalog", "noise+microscopiq"),
)
# Layers and matrix products of the tiny ViT that run in float: softmax by values; the second layer behind GELU as well;
# these and the products of queries with keys, whose zero points are no codes; all layers.
SOFTMAX, BOTH, SOME, LAYERS = 2, 4, 6, 10
FLOATS = {
    **dict.fromkeys(("noise+repq", "noise+erq", "noise+isvit", "noise+dopqvit", "noise+uqvit"), SOFTMAX),
    **dict.fromkeys(("noise+ptq4vit", "noise+mptq"), BOTH),
    "noise+microscopiq": LAYERS,
    "noise+adalog": SOME,
}
MIXED = ("clamp", "noise+mptq", "noise+clamp-search")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast(method="noise+omse")
def test_a_method_is_deployed_as_it_computes(method: str) -> None:
    short = {name: FEW[name] for name in method.split("+") if name in FEW}
    bits = "MP4.5" if method in MIXED else "W4A6"
    own, deployment = quantized(method, "vit", bits, "matmul", short)
    batch = images(20, seed=3)
    with torch.no_grad():
        expected, found = own(batch), deployment.module(batch)
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.std()), rtol=0.0)
    floats = [product for product in deployment.products if not product.integer]
    assert len(floats) == FLOATS.get(method, 0), [product.why for product in floats]
