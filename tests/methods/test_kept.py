"""Quantized networks as tensors and plain values, and back."""

from __future__ import annotations

import json

import pytest
import torch
from test_deployment import quantized
from tiny_networks import images, tiny_model

from methods.core.deployment.kept import NotKeptError, kept, restored


@pytest.mark.parametrize(
    ("method", "bits"),
    [("noise+minmax", "W4A8"), ("noise+adaround", "W3A4"), ("noise+repq", "W4A4"), ("noise+ptq4vit", "W8A8")],
)
@pytest.mark.parametrize("scheme", ["matmul", "full"])
@pytest.mark.parametrize("net", ["vit", "swin"])
@pytest.mark.fast(net="vit")
def test_what_is_kept_computes_the_same(method: str, bits: str, scheme: str, net: str) -> None:
    own, _ = quantized(method, net, bits, scheme)
    tensors, described = kept(own)
    again = restored(tiny_model(net, scale=1.0).net, tensors, json.loads(json.dumps(described)))
    batch = images(5)
    with torch.no_grad():
        assert torch.equal(own(batch), again(batch))
    assert again.summary == own.summary
    assert again.sites == own.sites


def test_what_only_its_method_knows_is_not_kept() -> None:
    own, _ = quantized("noise+adalog", "vit", "W4A4", "matmul")
    with pytest.raises(NotKeptError, match="known to its own method alone"):
        kept(own)


def test_another_network_is_refused() -> None:
    own, _ = quantized("noise+minmax", "vit", "W8A8", "matmul")
    tensors, described = kept(own)
    with pytest.raises(NotKeptError):
        restored(tiny_model("swin").net, tensors, described)
    with pytest.raises(NotKeptError):
        restored(tiny_model("vit").net, tensors, {**described, "activations": [{"class": "eval"}]})
