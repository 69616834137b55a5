"""UQ-ViT against its formulas, and what is dynamic in it."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn

from harness.api.spec import BitSpec
from methods.calibrators.uqvit.balance import behind_norm, weight_steps, without_norm
from methods.calibrators.uqvit.calibrator import UqVit
from methods.calibrators.uqvit.demax import DeMax
from methods.calibrators.uqvit.info import INFO, UqvitOptions
from methods.core.audit import Uninspectable, audit
from methods.core.graph.intercept import OUTPUT, tap
from methods.core.graph.trace import trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Divided, Uniform
from methods.core.reparameterization.calibrator import merge
from methods.core.reparameterization.fold import find_pairs, moved, put, ratio_and_shift


@pytest.mark.parametrize("bits", [2, 4])
def test_demax_keeps_each_rows_largest_value_and_rounds_the_others(bits: int) -> None:
    x = torch.softmax(torch.randn(2, 3, 5, 9, generator=torch.Generator().manual_seed(0)) * 3, -1)
    x[0, 0, 0] = torch.tensor([0.4, 0.4, 0.1, 0.1, *[0.0] * 5])  # two largest values
    got, top = DeMax(bits)(x), 2**bits - 1
    for row, rounded in zip(x.flatten(0, 2).tolist(), got.flatten(0, 2).tolist(), strict=True):
        place = row.index(max(row))
        assert rounded[place] == row[place]
        others = [value for i, value in enumerate(row) if i != place]
        step = max(others) / top
        rest = [value for i, value in enumerate(rounded) if i != place]
        assert rest == pytest.approx([round(value / step) * step for value in others], abs=1e-6)
        assert len(set(rest)) <= 2**bits
    assert torch.equal(DeMax(bits)(torch.tensor([[1.0]])), torch.ones(1, 1))


def test_shares_of_nothing_are_repqs_reparameterization() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 2, 3, 5, 8]) + 1
    channels = percentile_quantizer(x, 4, (0.999, 1.0), granularity=PerChannel(1))
    steps = weight_steps([torch.randn(4, 6, generator=torch.Generator().manual_seed(1))])
    for ours, theirs in zip(behind_norm(channels, steps, 0.0), ratio_and_shift(channels, merge(channels)), strict=True):
        assert torch.allclose(ours, theirs)
    # With a share, every channel still begins at the same value.
    ratio, shift = behind_norm(channels, steps, 0.25)
    least = (-channels.zero_point * channels.scale + shift) / ratio
    assert torch.allclose(least, least[:1].expand(6))
    share = channels.scale.double() / channels.scale.double().mean()
    assert torch.allclose(ratio, share**0.75 / steps**0.25)


def test_without_a_norm_no_channel_is_enlarged() -> None:
    largest, steps = torch.tensor([0.1, 1.0, 4.0]), torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64)
    assert torch.allclose(without_norm(largest, steps, 0.0), torch.tensor([1.0, 1.0, 4.0 / 1.7], dtype=torch.float64))
    assert torch.allclose(without_norm(largest, steps, 1.0), torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_balanced_network_is_the_same_function(name: str) -> None:
    net, x = tiny_model(name).net, images()
    balanced = copy.deepcopy(net)
    pairs = find_pairs(net, trace(tiny_model(name)), x)
    with torch.no_grad():
        for pair in pairs:
            y = tap(net, x, [(pair.norm, OUTPUT)])[1][pair.norm, OUTPUT]
            channels = percentile_quantizer(y, 4, (0.999,), granularity=PerChannel(y.dim() - 1))
            steps = weight_steps([net.get_parameter(f"{key.module}.weight") for key in pair.linears])
            put(balanced, moved(net, pair, *behind_norm(channels, steps, 0.25)))
        assert not torch.equal(balanced(x), net(x))
        torch.testing.assert_close(balanced(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_the_blocks_has_the_quantizer_of_its_share(name: str) -> None:
    model, x = tiny_model(name), images()
    ctx = FakeContext()
    options = UqvitOptions(softmax="static", alphas=(0.5,), norm_alphas=(0.0, 0.25))
    made = UqVit(options).calibrate(model, x, spec=BitSpec(4, 4), scheme="matmul", ctx=ctx)
    shares = dict(zip(ctx.found["uqvit"]["layers"], ctx.found["uqvit"]["shares"], strict=True))
    linears = [n for n, m in model.net.named_modules() if isinstance(m, nn.Linear) and "head" not in n]
    assert sorted(shares) == sorted(f"{n}.weight" for n in linears)
    for point, quantizer in made.activations.items():
        weight = f"{point[0].module}.weight"
        if point[0].kind == "linear" and weight in shares and ("proj" in weight or "fc2" in weight):
            assert isinstance(quantizer, Divided) == (shares[weight] is not None)
    assert ctx.counters["candidates"] == 2 * len(shares)
    assert len(set(shares.values())) > 1


def test_demax_is_declared_and_its_result_not_verified() -> None:
    model, x = tiny_model("vit"), images()
    options = INFO.resolve("paper", {"alphas": (), "norm_alphas": (0.0,)})
    assert isinstance(options, UqvitOptions)
    made = UqVit(options).calibrate(model, x, spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    assert len(made.dynamic) == 2
    with pytest.raises(Uninspectable, match=r"2 activation sites are dynamic, the first is .*: the largest value of"):
        audit(model, made, x, scheme="matmul", spec=BitSpec(4, 4))
    # What else is wrong is found all the same.
    made.net.head.weight.add_(torch.linspace(0, 0.01, made.net.head.weight.numel()).view_as(made.net.head.weight))
    assert audit(model, made, x, scheme="matmul", spec=BitSpec(4, 4))[1]
    static = UqVit(options.model_copy(update={"softmax": "static"}))
    made = static.calibrate(model, x, spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    assert made.dynamic == {}
    assert audit(model, made, x, scheme="matmul", spec=BitSpec(4, 4), thorough=True)[1] == []
    assert all(isinstance(q, Uniform) for q in made.activations.values())
