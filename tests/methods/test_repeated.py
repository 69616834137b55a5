"""What runs several times in a pass has one quantizer at each site, made from the values of all its runs."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from arithmetic_networks import model_of
from tiny_networks import CLASSES, FakeContext, images, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from harness.api.plugins import PluginInfo
from harness.api.spec import BitSpec
from methods.calibrators.adalog.quantizer import AdaLog
from methods.calibrators.dopqvit.tangent import TanQ
from methods.core.calibrate import observe
from methods.core.graph.intercept import Interceptor
from methods.core.graph.sites import Point, comes_from, find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import Ema
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized

PERCENTILES = (0.999, 0.9999, 0.99999)
QUICK: dict[str, dict[str, Any]] = {"isvit": {"steps": 2, "wide_steps": 2}}


def calibrated(name: str, net: nn.Module, *, scheme: str = "matmul", bits: int = 8, **options: Any) -> Quantized:
    info: PluginInfo = importlib.import_module(f"methods.calibrators.{name}.info").INFO
    module, _, attribute = info.target.partition(":")
    made: Any = getattr(importlib.import_module(module), attribute)
    calibrator = made(info.resolve("quick", {**QUICK.get(name, {}), **options}))
    found: Any = calibrator.calibrate(
        model_of(net), images(8), spec=BitSpec(bits, bits), scheme=scheme, ctx=FakeContext()
    )
    return found


def values_at(net: nn.Module, x: Tensor, point: Point) -> list[Tensor]:
    """What passes a point in each run, in float."""
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.clone())
        return value

    with torch.no_grad(), Interceptor(net, {point: keep}):
        net(x)
    return seen


class Pyramid(nn.Module):
    """One head on two levels, of which the second one has larger values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, CLASSES, 3, padding=1)
        self.requires_grad_(False)
        self.down.weight.mul_(8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        levels = first, self.down(first)
        return torch.cat([self.head(level).mean((2, 3)) for level in levels], 1)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("repq", "full"), ("repq", "matmul"), ("dopqvit", "full"), ("dopqvit", "matmul"), ("adalog", "matmul")],
)
def test_a_head_serves_every_level_of_a_pyramid(name: str, scheme: str) -> None:
    net, x = Pyramid(), images(8, 9)
    exact, got = net(x), calibrated(name, net, scheme=scheme)(x)
    for level in (slice(CLASSES), slice(CLASSES, None)):
        error = (got[:, level] - exact[:, level]).abs().mean() / exact[:, level].abs().mean()
        assert float(error) < 0.03


@pytest.mark.parametrize(("name", "bound"), [("ema", 0.03), ("percentile", 0.03), ("omse", 0.03), ("minmax", 0.03)])
def test_runs_of_a_batch_are_no_batches_of_a_moving_average(name: str, bound: float) -> None:
    net, x = Pyramid(), images(8, 9)
    exact, got = net(x), calibrated(name, net)(x)
    second = slice(CLASSES, None)
    error = (got[:, second] - exact[:, second]).abs().mean() / exact[:, second].abs().mean()
    assert float(error) < bound


@pytest.mark.parametrize("batch", [8, 3])
def test_a_moving_average_is_one_over_batches(batch: int) -> None:
    """Extremes of both levels of each batch, averaged as those of a site that runs once are."""
    net, x = Pyramid(), images(8)
    model = model_of(net)
    sites = find_sites(trace(model), "matmul", BitSpec(8, 8))
    (point,) = (site.point for site in sites.activations if site.op.module == "head")
    low, high = observe(model, x, sites, partial(Ema, 0.1), batch)[point].range(8)
    expected = Ema(0.1)
    for part in x.split(batch):
        expected.update(torch.cat([level.flatten() for level in values_at(net, part, point)]))
    assert (low, high) == expected.range(8)


def test_percentiles_are_those_of_all_levels_together() -> None:
    quantized = calibrated("repq", Pyramid())
    (point,) = (site.point for site in quantized.sites.activations if site.op.module == "head")
    levels = values_at(quantized.net, images(8), point)  # there is no LayerNorm to move, so weights are rounded alone
    assert [level.shape[-1] for level in levels] == [16, 8]
    expected = percentile_quantizer(torch.cat([level.flatten() for level in levels]), 8, PERCENTILES, widen=True)
    found = quantized.activations[point] if quantized.activations else None
    assert isinstance(found, Uniform)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.zero_point, expected.zero_point)


@pytest.mark.parametrize("name", ["repq", "dopqvit"])
def test_a_function_in_what_blocks_share_covers_all_of_them(name: str) -> None:
    """An MLP that two blocks have in common runs twice, and its GELU with it."""
    net: Any = tiny_model("vit").net
    net.blocks[1].mlp = net.blocks[0].mlp
    net.blocks[0].mlp.fc1.bias.zero_()
    for block, scale in zip(net.blocks, (0.01, 4.0), strict=True):
        block.norm2.weight.mul_(scale)
        block.norm2.bias.zero_()
    quantized = calibrated(name, net, scheme="full")
    (point,) = (site.point for site in quantized.sites.activations if site.op.kind == "activation")
    first, second = (float(x.max()) for x in values_at(net, images(8), point))
    assert first < 0.1
    assert second > 2
    assert quantized.activations is not None
    assert float(quantized.activations[point].high) == pytest.approx(second, rel=0.1)


class Linear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, 16)


class Behind(nn.Linear):
    """A layer behind an activation function."""

    def __init__(self) -> None:
        super().__init__(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.gelu(x))


class Attention(nn.Module):
    """Two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Convolved(nn.Module):
    """A convolution over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT[:, :, None])[:, :, 0].mT


class Twice(nn.Module):
    """A layer on tokens and on others that are larger: in two runs, or in one on both at once."""

    def __init__(self, layer: type[nn.Module], *, together: bool, fewer: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.other, self.layer = nn.Linear(16, 16), nn.Linear(16, 16), layer()
        self.last = nn.Linear(16, CLASSES)
        self.together, self.fewer = together, fewer
        self.requires_grad_(False)
        self.other.weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.stem(x[:, 0]), self.other(x[:, 0])
        if self.together:
            first, second = self.layer(torch.cat([small, large])).chunk(2)
        else:
            first, second = self.layer(small), self.layer(large[:, ::3] if self.fewer else large)
        return self.last(first.mean(1) + second.mean(1))


@pytest.mark.parametrize("layer", [Linear, Behind, Convolved, Attention])
def test_adalog_searches_two_runs_as_one_on_both(layer: type[nn.Module]) -> None:
    apart, at_once = (calibrated("adalog", Twice(layer, together=how), bits=4, tokens=None) for how in (False, True))
    assert apart.activations is not None
    assert at_once.activations is not None
    ours = [site.point for site in apart.sites.activations if site.op.module.startswith("layer")]
    assert ours
    for point in ours:
        one, both = apart.activations[point], at_once.activations[point]
        assert isinstance(one, AdaLog) == (layer is Behind or (point[1] == 0 and point[0].number == 1))
        for name in ("scale", "base") if isinstance(one, AdaLog) else ("scale", "zero_point"):
            torch.testing.assert_close(getattr(one, name), getattr(both, name), rtol=1e-4, atol=0)
    weights = (torch.cat([p.flatten() for p in q.net.get_submodule("layer").parameters()]) for q in (apart, at_once))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("tokens", [None, 64])
def test_adalog_keeps_heads_apart_where_runs_differ_in_size(tokens: int | None) -> None:
    net, x = Twice(Attention, together=False, fewer=True), images(8, 9)
    quantized = calibrated("adalog", net, tokens=tokens)
    assert quantized.activations is not None
    for (key, _), found in quantized.activations.items():
        if key.kind == "matmul" and not isinstance(found, AdaLog):
            assert isinstance(found, Uniform)
            assert len(found.scale) == 2
    assert float((quantized(x) - net(x)).square().mean()) < 0.03 * float(net(x).var())  # by the first run's alone 0.46


def test_the_tangent_is_the_best_for_all_runs_of_an_attention() -> None:
    net = Twice(Attention, together=False)
    tangents = tuple(2.0**i for i in range(0, 11, 2))
    quantized = calibrated("dopqvit", net, bits=3, tangents=tangents)
    assert quantized.activations is not None
    ((op, slot),) = (point for point, found in quantized.activations.items() if isinstance(found, TanQ))
    rounded = Quantized(net, quantized.sites, quantized.weights, None).net
    runs = zip(*(values_at(rounded, images(8), (op, each)) for each in (slot, 1 - slot)), strict=True)
    errors = torch.stack([torch.stack([(TanQ(3, t)(a) @ b - a @ b).square().sum() for t in tangents]) for a, b in runs])
    first, both = (tangents[int(each.argmin())] for each in (errors[0], errors.sum(0)))
    assert first != both  # else there would be nothing to tell apart
    found = quantized.activations[op, slot]
    assert isinstance(found, TanQ)
    assert found.tangent == both


class Either(nn.Module):
    """A layer on softmax outputs, and before or after on values of both signs."""

    def __init__(self, *, softmax_last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer = nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.softmax_last = softmax_last
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.stem(x[:, 0])
        first, second = (plain, plain.softmax(-1)) if self.softmax_last else (plain.softmax(-1), plain)
        return self.layer(first).mean(1) + self.layer(second).mean(1)


@pytest.mark.parametrize("softmax_last", [False, True])
@pytest.mark.parametrize("name", ["repq", "dopqvit", "adalog", "fqvit"])
def test_what_softmax_made_in_one_run_alone_is_not_taken_for_its(name: str, softmax_last: bool) -> None:
    """Its quantizers have no negative values."""
    net, x = Either(softmax_last=softmax_last), images(8, 9)
    quantized = calibrated(name, net)
    (site,) = (site for site in quantized.sites.activations if site.op.module == "layer")
    assert not comes_from(site, trace(model_of(net)), "softmax")
    least = float(torch.cat(values_at(net, images(8), site.point)).min())
    assert quantized.activations is not None
    assert float(quantized.activations[site.point].low) == pytest.approx(least, rel=0.1)
    assert float((quantized(x) - net(x)).square().mean()) < 1e-3 * float(net(x).var())
