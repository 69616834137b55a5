"""Trio-ViT's transformations on a tiny EfficientViT: exact in float, formulas by hand, and what they are for."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from timm.models.efficientvit_mit import EfficientVit
from tiny_networks import FakeContext, tiny_model
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.minmax.info import INFO as MINMAX
from methods.calibrators.trio.calibrator import Trio
from methods.calibrators.trio.divisors import PowerOfTwo, exponents
from methods.calibrators.trio.info import INFO, TrioOptions
from methods.calibrators.trio.moves import Move, centring, made_up_for, migration
from methods.calibrators.trio.places import Divisor, find_convolutions, find_divisors
from methods.core.audit import audit
from methods.core.deployment import deployed
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import ChannelEnds
from methods.core.numerics.quantizers import Uniform
from methods.core.range_calibrator import RangeCalibrator
from tasks.models.preprocessing import Preprocessing
from tasks.models.timm_models import vision_model

W8A8 = BitSpec(8, 8)
SHAPE = (1, 32, 32)
NONE = INFO.ablations["none of the three"]


@cache
def efficientvit() -> VisionModel:
    """Random, its channels of very different sizes."""
    torch.manual_seed(0)
    net = EfficientVit(
        in_chans=1, num_classes=5, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), head_dim=4, head_widths=(8, 8)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.num_features) * 3 + 0.1
            module.bias.data = torch.randn(module.num_features)
    model = vision_model("tiny", net, Preprocessing(SHAPE, (0.0,), (1.0,)), torch.device("cpu"))
    assert model.net is net
    return model


def images(n: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def calibrated(spec: BitSpec = W8A8, scheme: str = "full", **options):
    ctx = FakeContext()
    model = efficientvit()
    return Trio(TrioOptions(**options)).calibrate(model, images(), spec=spec, scheme=scheme, ctx=ctx), ctx


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_places_are_those_of_the_network(scheme):
    """Stem, two stages of convolutions; the third stage's halving and its block."""
    model = efficientvit()
    graph = trace(model)
    sites = find_sites(graph, scheme, W8A8)
    places = find_convolutions(model, graph, sites)
    assert [p.conv.module for p in places if p.shape == "pointwise"] == [
        "stem.res0.main.point_conv.conv",
        *(f"stages.{i}.blocks.0.main.point_conv.conv" for i in range(3)),
        "stages.2.blocks.1.local_module.main.point_conv.conv",
    ]
    # The stem's input also goes into a sum, attention's into its concatenation.
    assert [p.conv.module for p in places if p.shape == "depthwise"] == [
        *(f"stages.{i}.blocks.0.main.depth_conv.conv" for i in range(3)),
        "stages.2.blocks.1.local_module.main.depth_conv.conv",
    ]
    stored = (OpKey("stages.2.blocks.1.context_module.main", "matmul", 1), OUTPUT)
    # The ones that v is padded with are the last of its 4 + 1 channels.
    assert find_divisors(model, graph, sites) == ([Divisor(stored, (4,))] if scheme == "full" else [])


@pytest.mark.parametrize("printed", [False, True])
def test_shift_and_migration_are_exact_in_float(printed):
    model = efficientvit()
    graph = trace(model)
    generator = torch.Generator().manual_seed(0)
    moves = {}
    for place in find_convolutions(model, graph, find_sites(graph, "full", W8A8)):
        channels = model.net.get_submodule(place.conv.module).in_channels
        low = -torch.rand(channels, generator=generator)
        high = torch.rand(channels, generator=generator) * 9
        moves[place] = centring(low, high, printed=printed) if place.shape == "pointwise" else migration(high, 0.1, 64)
    changed = made_up_for(model.net, moves)
    assert sum(p.numel() for p in changed.parameters()) == sum(p.numel() for p in model.net.parameters())
    with Interceptor(changed, {place.point: move for place, move in moves.items()}):
        moved = changed(images())
    plain = model.net(images())
    assert not torch.allclose(changed(images()), plain, atol=1e-2)
    assert torch.allclose(moved, plain, atol=1e-4)


def test_channels_are_centred_and_large_ones_brought_down():
    low, high = torch.tensor([-0.375, -0.375, 1.0]), torch.tensor([8.0, 1.0, 2.0])
    assert torch.equal(centring(low, high, printed=False).shift, torch.tensor([3.8125, 0.3125, 1.5]))
    assert torch.equal(centring(low, high, printed=True).shift, torch.tensor([4.1875, 0.6875, 0.5]))
    sizes = torch.tensor([1.0] * 98 + [-1.0, 1000.0])
    factors = migration(sizes, 0.1, 64.0).factor
    whole = max(float(torch.quantile(sizes, 0.99)), float(sizes.mean()))
    assert torch.allclose(factors[:98], torch.full((98,), max(1 / whole, 0.1)))
    assert factors[98] == pytest.approx(0.1)
    assert factors[99] == pytest.approx(min(1000 / whole, 64.0))


def test_divisors_are_rounded_to_the_geometric_middle():
    x = torch.tensor([1e-5, 2**-6, 0.99, 1.0, 1.41, 1.42, 2.0, 2.8, 2.9, 724.0, 725.0, 1e6, 0.0])
    expected = [-6, -6, 0, 0, 0, 1, 1, 1, 2, 9, 9, 9, -6]
    assert exponents(x, -6, 9).tolist() == expected
    assert exponents(torch.tensor(724.0), -6, 12) == 9  # sqrt 2 * 2^9 is 724.08
    assert exponents(torch.tensor(725.0), -6, 12) == 10
    assert PowerOfTwo.of(-6, 9, 8, x.max())(x).tolist() == [2.0**y for y in expected]
    few = PowerOfTwo.of(-6, 9, 3, torch.tensor(5.0))  # up to 4, since 5 is nearer to it
    assert (few.least, few.largest) == (-5, 2)


def test_none_of_the_three_is_minmax():
    model = efficientvit()
    plain = RangeCalibrator(MINMAX.options()).calibrate(model, images(), spec=W8A8, scheme="full", ctx=FakeContext())
    ours, ctx = calibrated(**NONE)
    assert torch.equal(ours(images()), plain(images()))
    assert not any(ctx.counters.values())


@pytest.mark.parametrize(
    ("name", "scheme", "bits"),
    [
        ("all", "matmul", W8A8),
        ("all", "full", BitSpec(4, 3)),
        *((name, "full", W8A8) for name in ["all", *INFO.ablations]),
    ],
)
def test_results_are_what_was_asked_for(name, scheme, bits):
    model = efficientvit()
    before = copy.deepcopy(model.net.state_dict())
    result, ctx = calibrated(bits, scheme, **INFO.ablations.get(name, {}))
    output, findings = audit(model, result, images(2, seed=5), scheme=scheme, spec=bits)
    assert findings == []
    assert torch.isfinite(output).all()
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    if name == "all":
        assert ctx.counters["shifted"] == 5
        assert ctx.counters["migrated"] == 4
        assert ctx.counters["logarithmic_divisors"] == (1 if scheme == "full" else 0)


def test_both_moves_are_for_channels_that_one_range_does_not_fit():
    """Channels apart from each other, and of sizes apart."""
    noise = torch.rand(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    places, sizes = torch.arange(8.0).view(-1, 1, 1), 2.0 ** -torch.arange(8.0).view(-1, 1, 1)

    def error(x: Tensor, move: Move) -> Tensor:
        moved = move(x)
        rounded = move.quantizer(Uniform.asymmetric(*torch.aminmax(moved), 4))(x)
        return ((rounded - moved) * move.factor.view(-1, 1, 1)).square().mean((0, 2, 3))

    ends = ChannelEnds(1)
    ends.update(noise + places)
    shift = centring(*ends.range(0), printed=False)
    same = Move(torch.zeros(8), torch.ones(8))
    assert (error(noise + places, shift) < error(noise + places, same) / 10).all()
    ends = ChannelEnds(1)
    ends.update(noise * sizes)
    factors = migration(ends.range(0)[1], 0.1, 64.0)
    assert (error(noise * sizes, factors)[1:] < error(noise * sizes, same)[1:] / 2).all()


def test_moved_maps_are_codes_when_deployed():
    model = efficientvit()
    result, _ = calibrated()
    found = deployed(result, model)
    x = images(2, seed=6)
    assert torch.allclose(found.module(x), result(x), atol=1e-3)
    # The projection of attention takes quotients, and q k v what powers of two divide.
    assert {product.op for product in found.products if not product.integer} == set()


def test_networks_without_such_layers_are_skipped():
    reason = Trio(TrioOptions()).skip(tiny_model("vit"), spec=W8A8, scheme="full")
    assert reason is not None
    assert "use minmax" in reason
    assert Trio(TrioOptions()).skip(efficientvit(), spec=W8A8, scheme="full") is None
