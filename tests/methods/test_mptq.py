"""MPTQ-ViT as rebuilt: smoothing changes nothing in float, regions are the best, and widths are the greedy ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn

from harness.api.spec import BitSpec
from methods.calibrators.mptq.calibrator import Mptq
from methods.calibrators.mptq.greedy import Greedy
from methods.calibrators.mptq.info import MptqOptions
from methods.calibrators.mptq.regions import behind_gelu
from methods.calibrators.mptq.smoothing import scale_and_shift, smoothed
from methods.core.budget import Budget, BudgetError
from methods.core.graph.intercept import OUTPUT, tap
from methods.core.graph.trace import trace
from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax
from methods.core.numerics.functions import GELU_MINIMUM
from methods.core.reparameterization.fold import find_pairs


@pytest.mark.parametrize("name", NETWORKS)
def test_smoothing_changes_nothing_in_float_and_centres_the_channels(name: str) -> None:
    model, x = tiny_model(name), images()
    graph = trace(model)
    net = smoothed(model, graph, x, 0.5, 4)  # two batches
    with torch.no_grad():
        torch.testing.assert_close(net(x), model.net(x), rtol=1e-4, atol=1e-4)
    for pair in find_pairs(model.net, graph, x):
        y = tap(net, x, [(pair.norm, OUTPUT)])[1][pair.norm, OUTPUT].flatten(0, -2)
        assert not torch.equal(y, tap(model.net, x, [(pair.norm, OUTPUT)])[1][pair.norm, OUTPUT].flatten(0, -2))
        torch.testing.assert_close(y.amin(0), -y.amax(0), rtol=1e-3, atol=1e-4)


def test_scales_are_smoothquants_of_what_is_left_of_a_channel() -> None:
    low, high = torch.tensor([-1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 0.0])
    weight = torch.tensor([[0.5, -4.0, 1.0], [0.25, 1.0, 0.0]])
    ratio, shift = scale_and_shift(low, high, weight, 0.5)
    assert ratio[:2].tolist() == pytest.approx([(2 / 0.5) ** 0.5, (1 / 4) ** 0.5])
    assert shift.tolist() == [-1.0, -3.0, 0.0]
    assert bool(torch.isfinite(ratio).all())  # a constant channel


@pytest.mark.parametrize("bits", [2, 4])
def test_the_ratio_behind_gelu_is_the_best_power_of_two(bits: int) -> None:
    x = nn.functional.gelu(torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * 3)
    choice = behind_gelu([bits], torch.tensor(GELU_MINIMUM))
    for part in x:
        choice.update(part)
    found = choice.best(bits)
    assert isinstance(found, TwinGelu)
    negative = GELU_MINIMUM / (2 ** (bits - 1) - 1)
    errors = {
        m: float((TwinGelu(bits, torch.tensor(negative), torch.tensor(negative * 2**m))(x) - x).square().sum())
        for m in range(bits + 3)
    }
    best = min(errors, key=lambda m: errors[m])
    assert (float(found.negative), float(found.positive)) == pytest.approx((negative, negative * 2**best))


def test_both_kinds_of_regions_are_where_gelu_and_softmax_are() -> None:
    options = MptqOptions()
    made = Mptq(options).calibrate(
        tiny_model("vit"), images(), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext()
    )  # fmt: skip
    kinds = [type(q) for q in made.activations.values()]
    assert kinds.count(TwinGelu) == kinds.count(TwinSoftmax) == 2


SIZES = {"a": 10, "b": 10, "c": 10}  # equal, so that each step saves as much
WEIGHTS = {"a": 5.0, "b": 1.0, "c": 0.2}


def loss(bits: dict[str, int]) -> float:
    """Squared errors that add up, as if layers did not interact."""
    return sum(WEIGHTS[name] * SIZES[name] * 4.0**-width for name, width in bits.items())


@pytest.mark.parametrize("mean", [2.0, 4.5, 6.9, 8.0])
@pytest.mark.parametrize("refresh_all", [True, False])
def test_greedy_widths_are_the_best_where_layers_do_not_interact(mean: float, refresh_all: bool) -> None:
    """Steps of a layer cost ever more, so that the cheapest first are the best of all within the budget."""
    budget, widths = Budget(SIZES, mean), (2, 3, 4, 5, 6, 7, 8)
    greedy = Greedy(budget, widths, loss, refresh_all=refresh_all)
    found = greedy.run()
    assert budget.fits(found)
    every = [dict(zip(SIZES, each, strict=True)) for each in itertools.product(widths, repeat=3)]
    best = min(loss(each) for each in every if budget.fits(each))
    assert loss(found) == pytest.approx(best)


def test_bits_that_the_last_step_saved_in_excess_are_spent() -> None:
    sizes = {"large": 100, "small": 1}
    budget = Budget(sizes, 6.999)
    weights = {"large": 0.01, "small": 1.0}
    found = Greedy(budget, (4, 6, 8), lambda bits: sum(weights[n] * 4.0**-b for n, b in bits.items())).run()
    assert found == {"large": 6, "small": 8}


def test_evaluations_bound_the_measurements_and_lazy_ones_are_fewer() -> None:
    budget, widths = Budget(SIZES, 4.5), (2, 3, 4, 5, 6, 7, 8)
    runs = {}
    for label, more in (("none", 0), ("some", 3), ("any", None)):
        runs[label] = Greedy(budget, widths, loss, evaluations=more)
        assert budget.fits(runs[label].run())
    assert runs["none"].measured == 1 + len(SIZES)
    assert runs["some"].measured == 4 + len(SIZES)
    every = Greedy(budget, widths, loss, refresh_all=True)
    assert every.run() == runs["any"].run()
    assert runs["any"].measured < every.measured
    with pytest.raises(BudgetError, match="a mean of 2 weight bits cannot be met"):
        Greedy(Budget(SIZES, 2.0), (3, 4), loss).run()


@pytest.mark.parametrize("bits", ["MP4.5", "MP4A6"])
def test_mixed_precision_keeps_the_budget_and_counts_its_measurements(bits: str) -> None:
    model, spec, ctx = tiny_model("vit"), BitSpec.parse(bits), FakeContext()
    made = Mptq(MptqOptions(evaluations=4)).calibrate(model, images(), spec=spec, scheme="full", ctx=ctx)
    layers = made.summary.layers
    assert sum(layer.size * layer.bits for layer in layers) <= spec.weight * sum(layer.size for layer in layers)
    assert len({layer.bits for layer in layers}) > 1
    assert ctx.counters["candidates"] == 1 + len(layers) + 4
    widths = set(made.summary.activation_bits.values())
    assert widths == {6} if bits == "MP4A6" else len(widths) > 1
