"""DopQ-ViT: the median as the scale that is nearest to all others, and the tangent-shaped quantizer."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model

from harness.api.spec import BitSpec
from methods.calibrators.dopqvit.calibrator import DopqVit
from methods.calibrators.dopqvit.info import INFO, DopqvitOptions
from methods.calibrators.dopqvit.tangent import TanQ
from methods.core.graph.intercept import tap
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized
from methods.core.reparameterization.calibrator import merge


@pytest.mark.parametrize("channels", [7, 8])
def test_mosf_is_the_scale_of_least_mean_absolute_deviation(channels: int) -> None:
    scale = torch.rand(channels, generator=torch.Generator().manual_seed(0)) ** 3
    found = merge(Uniform(scale, torch.zeros(channels, dtype=torch.int32), 0, 15, PerChannel(1)), "median")
    deviations = (scale[:, None] - scale).abs().mean(1)
    assert float((found.scale - scale).abs().mean()) == pytest.approx(float(deviations.min()))
    assert found.scale in scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tangent", [0.0, 1.0, 30.0, 1024.0])
def test_tanq_is_the_formula(bits: int, tangent: float) -> None:
    x = torch.softmax(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 4, -1)
    x = torch.cat([x.flatten(), torch.tensor([0.0, 1.0])])
    quantizer, top, a = TanQ(bits, tangent), 2**bits - 1, math.atan(tangent)
    got = quantizer(x).tolist()
    assert len(set(got)) <= 2**bits
    assert got[-2:] == [0.0, 1.0]
    for value, rounded in zip(x.tolist(), got, strict=True):
        y = 0.5 + math.tan(a * (2 * value - 1)) / (2 * tangent) if tangent else value
        code = round(y * top)
        back = 0.5 + math.atan((2 * code / top - 1) * tangent) / (2 * a) if tangent else code / top
        assert rounded == pytest.approx(back, abs=1e-6) or abs(y * top % 1 - 0.5) < 1e-3
    steps = quantizer.values.diff()
    if tangent:  # finest at both ends
        assert torch.allclose(steps, steps.flip(0))
        assert float(steps[0]) < float(steps[len(steps) // 2])


def test_the_tangent_is_the_best_for_what_attention_makes_of_it() -> None:
    model, x = tiny_model("vit"), images()
    options = INFO.resolve("paper", {})
    assert isinstance(options, DopqvitOptions)
    made = DopqVit(options).calibrate(model, x, spec=BitSpec(8, 3), scheme="matmul", ctx=FakeContext())
    assert isinstance(made, Quantized)
    found = {point: q for point, q in (made.activations or {}).items() if isinstance(q, TanQ)}
    assert len(found) == 2
    (op, _), first = next(iter(found.items()))  # before it only weights are rounded, here nearly not at all
    _, seen = tap(model.net, x, [(op, 0), (op, 1)])
    weights, values = seen[op, 0], seen[op, 1]
    errors = [float((TanQ(3, t)(weights) @ values - weights @ values).square().sum()) for t in options.tangents]
    assert first.tangent == options.tangents[errors.index(min(errors))]
    assert first.tangent > 0  # softmax outputs are not even
