"""Block reconstruction against formulas written out here."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.calibrators.brecq.calibrator import Brecq
from methods.calibrators.brecq.info import BrecqOptions
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.segments import Segment, cut
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace, trace_net
from methods.core.numerics.observers import MinMax
from methods.core.numerics.quantizers import Uniform, weight_quantizer
from methods.core.numerics.straight_through import StraightThrough
from methods.core.quantized import Quantized
from methods.core.reconstruction.engine import Engine, LossChoice, Phase
from methods.core.reconstruction.least_squares import LeastSquares, rank_one
from methods.core.reconstruction.losses import (
    Divergence,
    Fisher,
    Hessian,
    LowRank,
    PowerError,
    diagonal_error,
    low_rank_error,
    squared_error,
)
from methods.core.reconstruction.ranges import least_error_quantizer
from methods.core.reconstruction.rounding import (
    Annealing,
    SoftRounding,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    regularizer,
)
from methods.core.reconstruction.scales import Scales, mixed
from methods.core.reconstruction.sensitivity import gradients
from methods.core.reconstruction.units import LayerUnit, SegmentUnit
from methods.core.reconstruction.walk import Walk

NAMES = ("adaround", "brecq", "qdrop", "aphq", "fimaq", "lsvit")
POINT: Any = ("operation", 0)


def last(x: torch.Tensor) -> int:
    return -1


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- rounding ---------------------------------------------------------------------------------------------------


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def test_rectified_sigmoid_and_its_gradient():
    v = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    h = rectified_sigmoid(v)
    stretched = 1.2 * sigmoid(v.detach().numpy()) - 0.1
    np.testing.assert_allclose(h.detach(), np.clip(stretched, 0, 1), atol=1e-12)
    assert h[0] == 0  # reached, not only approached
    assert h[-1] == 1
    h.sum().backward()
    s = sigmoid(v.detach().numpy())
    np.testing.assert_allclose(v.grad, np.where((stretched > 0) & (stretched < 1), 1.2 * s * (1 - s), 0), atol=1e-12)
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(share)), share)


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_regularizer_and_its_gradient(beta):
    v = drawn(3, 4).double().requires_grad_()
    value = regularizer(v, beta)
    x = v.detach().numpy()
    h = np.clip(1.2 * sigmoid(x) - 0.1, 0, 1)
    expected = sum(1 - abs(2 * each - 1) ** beta for each in h.flatten())
    assert value.item() == pytest.approx(expected)
    value.backward()
    slope = 1.2 * sigmoid(x) * (1 - sigmoid(x))
    np.testing.assert_allclose(v.grad, -beta * np.abs(2 * h - 1) ** (beta - 1) * np.sign(2 * h - 1) * 2 * slope)
    assert float(regularizer(torch.tensor([-9.0, 9.0]), beta)) == 0.0


def test_annealing():
    linear = Annealing(1000, 0.2, 20.0, 2.0, "linear")
    cosine = Annealing(1000, 0.2, 20.0, 2.0, "cosine")
    for schedule in (linear, cosine):
        assert [schedule.beta(step) for step in (0, 199)] == [None, None]
        assert schedule.beta(200) == 20.0
        assert schedule.beta(999) == pytest.approx(2.0, abs=0.03)
        betas = [schedule.beta(step) for step in range(200, 1000)]
        assert betas == sorted(betas, reverse=True)
    assert linear.beta(400) == pytest.approx(2 + 18 * 0.75)
    assert cosine.beta(400) == pytest.approx(2 + 9 * (1 + math.cos(math.pi / 4)))
    assert Annealing(10, 0.0, 20.0, 2.0, "linear").beta(0) == 20.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_rounding_starts_at_the_weight_and_hardens_to_a_neighbour(symmetric):
    weight = drawn(6, 5, 2)
    base = least_error_quantizer(weight, 3, symmetric=symmetric, norm=2.4)  # clips some weights
    rounding = SoftRounding(weight, base)
    scale = base.scale.view(-1, 1, 1)
    zero = base.zero_point.view(-1, 1, 1)
    clipped = weight.clamp((base.qmin - zero) * scale, (base.qmax - zero) * scale)
    torch.testing.assert_close(rounding.soft(), clipped)
    torch.testing.assert_close(rounding.hard()(weight), base(weight))  # round to nearest, before learning

    with torch.no_grad():
        rounding.v.copy_(4 * drawn(*weight.shape, seed=1))
    hard = rounding.hard()(weight)
    codes = (hard / scale + zero).double()
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    below = (weight / scale).floor()
    neighbours = [(n.clamp(base.qmin - zero, base.qmax - zero)) * scale for n in (below, below + 1)]
    assert torch.equal(hard, torch.where(rounding.v >= 0, neighbours[1], neighbours[0]))
    # Decided values are where the soft weight is.
    decided = (rounding.v.abs() > 2.5).detach()
    torch.testing.assert_close(rounding.soft()[decided], hard[decided])


def test_least_error_ranges_against_all_candidates():
    weight = drawn(3, 40) ** 3
    found = least_error_quantizer(weight, 4, symmetric=False, norm=2.4)
    for channel, row in enumerate(weight):
        errors = []
        for i in range(80):
            q = Uniform.asymmetric(row.min() * (1 - 0.01 * i), row.max() * (1 - 0.01 * i), 4)
            errors.append((float((q(row) - row).abs().pow(2.4).sum()), float(q.scale)))
        assert float(found.scale[channel]) == pytest.approx(min(errors)[1])


# --- scales and dropping ----------------------------------------------------------------------------------------


def test_straight_through_equals_the_quantizer_and_lsq_gradients():
    base = Uniform.asymmetric(torch.tensor(-0.7), torch.tensor(1.1), 3)
    x = (2 * drawn(200)).requires_grad_()
    scale = base.scale.clone().requires_grad_()
    low, high = base.qmin - int(base.zero_point), base.qmax - int(base.zero_point)
    y = StraightThrough.apply(x, scale, low, high)
    assert torch.equal(y, base(x.detach()))
    upstream = drawn(200, seed=2)
    y.backward(upstream)
    d_scale = 0.0
    for xi, gi, di in zip(x.tolist(), upstream.tolist(), x.grad.tolist(), strict=True):
        ratio = xi / float(scale)
        if low <= round(ratio) <= high:
            d_scale += gi * (round(ratio) - ratio)
            assert di == gi
        else:
            d_scale += gi * (low if ratio < low else high)
            assert di == 0.0
    assert float(scale.grad) == pytest.approx(d_scale, rel=1e-4)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 1.0])
def test_dropping_keeps_its_share_of_float_values(drop):
    base = Uniform.asymmetric(torch.tensor(-1.0), torch.tensor(1.0), 2)
    scales = Scales({POINT: base}, relative=True, drop=drop, generator=torch.Generator().manual_seed(0))
    (transform,) = scales.transforms().values()
    x = torch.full((200_000,), 0.2)
    assert torch.equal(transform(x), base(x))  # nothing is dropped but while it is asked for
    scales.dropping = True
    y = transform(x)
    assert set(y.unique().tolist()) <= {float(x[0]), float(base(x)[0])}
    expected = drop * 0.2 + (1 - drop) * float(base(x)[0])
    assert float(y.double().mean()) == pytest.approx(expected, abs=2e-3)
    assert not drop or drop == 1 or not torch.equal(transform(x), y)  # anew in every pass


def test_dropped_values_give_the_scale_no_gradient():
    base = Uniform.asymmetric(torch.tensor(-1.0), torch.tensor(1.0), 2)
    scales = Scales({POINT: base}, relative=False, drop=1.0, generator=torch.Generator())
    scales.values.requires_grad_()
    scales.renew()
    scales.dropping = True
    x = drawn(50).requires_grad_()
    scales.transforms()[POINT](x).sum().backward()
    assert torch.equal(x.grad, torch.ones(50))  # also outside the range
    assert float(scales.values.grad) == 0.0


def test_relative_and_absolute_scales():
    base = Uniform.asymmetric(torch.tensor(-1.0), torch.tensor(2.0), 4)
    for relative in (True, False):
        scales = Scales({POINT: base}, relative=relative, drop=0.0, generator=torch.Generator())
        assert torch.equal(scales.hard()[POINT].scale, base.scale)
        scales.values += 0.1
        now = float(base.scale) * 1.1 if relative else float(base.scale) + 0.1
        assert float(scales.hard()[POINT].scale) == pytest.approx(now)
        scales.values -= 9.0
        scales.keep_positive()
        assert float(scales.hard()[POINT].scale) > 0


def test_mixed_inputs_are_half_of_each():
    x = mixed(torch.zeros(100_000), torch.ones(100_000), 0.5, torch.Generator().manual_seed(0))
    assert float(x.mean()) == pytest.approx(0.5, abs=0.01)
    first, second = (drawn(10_000, seed=seed).requires_grad_() for seed in (1, 2))
    chosen = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) < 0.3
    x = mixed(first, second, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(x, torch.where(chosen, second, first))
    cotangent = drawn(10_000, seed=3)
    x.backward(cotangent)
    assert torch.equal(first.grad, cotangent * ~chosen)
    assert torch.equal(second.grad, cotangent * chosen)


# --- losses -----------------------------------------------------------------------------------------------------


def test_squared_and_fisher_error_against_sums():
    output, target, g = drawn(3, 4, 5), drawn(3, 4, 5, seed=1), drawn(7, 4, 5, seed=2)
    index = torch.tensor([4, 0, 6])
    plain = weighted = 0.0
    weights = g.square() / g.square().mean()
    for n in range(3):
        for t in range(4):
            for c in range(5):
                difference = float(output[n, t, c] - target[n, t, c]) ** 2
                plain += difference / 12
                weighted += difference * float(weights[index[n], t, c]) / 12
    assert float(squared_error([output], [target], last)) == pytest.approx(plain, rel=1e-5)
    assert float(Fisher([g], last)([output], [target], index)) == pytest.approx(weighted, rel=1e-5)
    several = squared_error([output, output[:, 0]], [target, target[:, 0]], last)
    first = float((output[:, 0] - target[:, 0]).square().sum(-1).mean())
    assert float(several) == pytest.approx((plain + first) / 2, rel=1e-5)
    # Channels-first maps sum over axis 1.
    moved = squared_error([output.movedim(-1, 1)], [target.movedim(-1, 1)], lambda x: 1)
    assert float(moved) == pytest.approx(plain, rel=1e-5)


def test_error_of_another_power_against_a_sum():
    output, target = drawn(3, 4, 5), drawn(3, 4, 5, seed=1)
    wanted = sum(abs(float(x)) ** 2.4 for x in (output - target).flatten()) / 12
    assert float(PowerError(last, 2.4)([output], [target], torch.arange(3))) == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(PowerError(last)([output], [target], torch.arange(3)), squared_error([output], [target], last))


def test_brecqs_second_stage_is_the_released_one():
    """Inputs from the float model and the power 2.4, after rounding on quantized inputs under Fisher weights."""
    phases = Brecq(BrecqOptions()).phases()
    assert (phases["rounding"].inputs, phases["rounding"].loss.name) == ("quantized", "fisher")
    assert (phases["scales"].inputs, phases["scales"].loss) == ("float", LossChoice(norm=2.4))
    other = Brecq(BrecqOptions(scale_inputs="quantized", scale_norm=2.0)).phases()["scales"]
    assert (other.inputs, other.loss) == ("quantized", LossChoice())


def test_perturbation_hessian_against_a_sum():
    above, below = drawn(6, 4), drawn(6, 4, seed=1)
    outputs = [drawn(3, 4, seed=2), drawn(3, 4, seed=3)]
    target = torch.zeros(3, 4)
    values = []
    for output in outputs:
        total = 0.0
        for c in range(4):
            weight = sum(abs(float(above[n, c] - below[n, c])) for n in range(6)) / 6
            total += sum(float(output[n, c]) ** 2 * weight for n in range(3)) / 12
        values.append(total)
    loss = Hessian([above], [below])
    index = torch.arange(3)
    assert float(loss([outputs[0]], [target], index)) == pytest.approx(2.0)  # the first value
    assert float(loss([outputs[1]], [target], index)) == pytest.approx(2.0 * values[1] / values[0], rel=1e-5)


def losses(network: str, choice: LossChoice, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The loss of every unit of the tiny network."""
    model = tiny_model(network)
    x = images(8)
    graph, made = quantized(model, x)
    model, made = replace(model, net=model.net.to(dtype)), copy.copy(made)
    made.net.to(dtype)
    engine = Engine(model, graph, made, x.to(dtype), FakeContext())
    found: list[Any] = []
    engine._learn = lambda unit, _own, ph: found.append(engine._loss(unit, ph))
    engine.run(phase(loss=choice, activations=False))
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_perturbation_hessian_is_no_rounding_error(network):
    """What is added to all channels alike is taken away by the next LayerNorm; random signs are not."""

    def agreement(perturbed: str) -> float:
        single, double = (
            [loss._weights[0].flatten() for loss in losses(network, choice, dtype) if isinstance(loss, Hessian)]
            for choice in [LossChoice("hessian", perturbed=perturbed)]
            for dtype in (torch.float32, torch.float64)
        )
        pairs = [torch.stack([a.double(), b]) for a, b in zip(single, double, strict=True)]
        return min(float(torch.corrcoef(pair)[0, 1]) for pair in pairs)

    assert agreement("signs") > 0.999
    assert agreement("ones") < 0.99


@pytest.mark.parametrize("name", ["mse", "fisher", "hessian", "low-rank", "least-squares"])
def test_the_head_is_learned_under_the_divergence_of_logits(name):
    *others, tail = losses("vit", LossChoice(name))
    assert isinstance(tail, Divergence) == (name in {"hessian", "low-rank", "least-squares"})
    assert not any(isinstance(loss, Divergence) for loss in others)
    output, target = drawn(5, 7), drawn(5, 7, seed=1)
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (target, output))
    found = float(Divergence()([output], [target], torch.arange(5)))
    assert found == pytest.approx((p * np.log(p / q)).sum() / 5, rel=1e-5)
    # APHQ-ViT's starts at 2, whatever it is, and keeps that factor.
    scaled = Divergence(2.0)
    assert float(scaled([output], [target], torch.arange(5))) == pytest.approx(2.0)
    other = Divergence()([target + output], [target], torch.arange(5))
    again = scaled([target + output], [target], torch.arange(5))
    assert float(again) == pytest.approx(2.0 * float(other) / found, rel=1e-4)
    if isinstance(tail, Divergence):
        first = float(tail([output], [target], torch.arange(5)))
        assert first == pytest.approx(found if name == "low-rank" else 2.0, rel=1e-5)


@pytest.mark.parametrize("form", ["code", "secant"])
def test_low_rank_and_diagonal_fisher_against_sums(form):
    difference, rows, g = drawn(5, 9).abs(), drawn(3, 9, seed=1).abs(), drawn(3, 9, seed=2).abs()
    d, big_d, big_g = (x.double().numpy() for x in (difference, rows, g))
    inner = big_d @ (big_d if form == "code" else big_g).T
    inverse = np.linalg.inv((inner + inner.T) / 2)
    total = sum((row @ big_g.T) @ inverse @ (big_g @ row) for row in d) / 5
    assert float(low_rank_error(difference, rows, g, form)) == pytest.approx(total, rel=1e-3)
    diagonal = sum(d[n, f] ** 2 * big_g[:, f].mean() for n in range(5) for f in range(9)) / 45
    assert float(diagonal_error(difference, g)) == pytest.approx(diagonal, rel=1e-5)


def test_secant_form_gives_back_a_low_rank_matrix():
    """With g = F ΔO for all rows, the form is ΔO F ΔOᵀ for differences within the rows' span."""
    half = drawn(6, 6).double()
    matrix = half @ half.T
    rows = drawn(3, 6, seed=1).double()
    difference = drawn(4, 3, seed=2).double() @ rows
    value = low_rank_error(difference, rows, rows @ matrix, "secant")
    assert float(value) == pytest.approx(float(((difference @ matrix) * difference).sum(1).mean()), rel=1e-4)


def test_low_rank_loss_refreshes():
    measured = [([drawn(6, 2, 2, seed=s)], [drawn(6, 2, 2, seed=s + 9)]) for s in range(2)]
    calls = iter(measured)
    loss = LowRank(lambda: next(calls), 3, "code")
    target, index = torch.zeros(3, 2, 2), torch.arange(3)
    output = [drawn(3, 2, 2, seed=20), drawn(3, 2, 2, seed=21)]
    for step in range(6):
        loss.renew(step)
        value = float(loss([output[step % 3 > 0]], [target], index))
        if step % 3 == 0:
            assert value == pytest.approx(2.0)  # both terms are 1 after a refresh
    rows = torch.stack([m[0][0].abs().mean(0).flatten() for m in measured])
    g = torch.stack([m[1][0].abs().mean(0).flatten() for m in measured])
    flat = [x.abs().flatten(1) for x in output]
    expected = low_rank_error(flat[1], rows, g, "code") / low_rank_error(flat[0], rows, g, "code")
    expected += diagonal_error(flat[1], g) / diagonal_error(flat[0], g)
    assert value == pytest.approx(float(expected), rel=1e-4)
    assert next(calls, None) is None


def of_a_linear_block(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of a quantized linear layer's outputs (n, tokens, features), and their gradients of ½ dᵀ matrix d."""
    weight, x = drawn(3, 4).double(), drawn(8, 2, 4, seed=1).double()
    difference = (x @ (Uniform.asymmetric(weight.min(), weight.max(), 2)(weight) - weight).T).requires_grad_()
    d = difference.flatten(1)
    (0.5 * ((d @ matrix) * d).sum()).backward()
    return difference.detach(), difference.grad


def test_least_squares_find_a_quadratic_output_loss():
    """A diagonal one gives its diagonal, one of rank one its factor; the loss is then the output loss itself."""
    weights, factor = drawn(6).abs().double(), drawn(6, seed=4).double()
    difference, g = of_a_linear_block(weights.diag())
    loss = LeastSquares(lambda: ([difference], [g]), "aligned")
    torch.testing.assert_close(loss.diagonals[0], weights)

    difference, g = of_a_linear_block(torch.outer(factor, factor))
    assert len((difference.flatten(1) @ factor).sign().unique()) == 2  # images on both sides
    found = rank_one(difference.flatten(1), g.flatten(1), "aligned")
    torch.testing.assert_close(found * torch.sign(found[0]), factor * torch.sign(factor[0]))
    # As printed, the sides cancel: what is left is shorter by that.
    c = (difference.flatten(1) @ factor).numpy()
    printed = rank_one(difference.flatten(1), g.flatten(1), "printed")
    np.testing.assert_allclose(printed, factor * (c * np.abs(c)).sum() / (c**2).sum())

    loss = LeastSquares(lambda: ([difference], [g]), "aligned")
    loss.diagonals = [weights]
    target, index = torch.zeros(8, 2, 3).double(), torch.arange(8)
    other = drawn(8, 2, 3, seed=6).double()
    values = [
        0.5 * float((x.square() @ weights + (x @ factor) ** 2).mean())
        for x in (difference.flatten(1), other.flatten(1))
    ]
    assert float(loss([difference], [target], index)) == pytest.approx(2.0)
    assert float(loss([other], [target], index)) == pytest.approx(2.0 * values[1] / values[0])


def test_least_squares_are_no_reward_for_errors():
    """Where quantization happened to help, or changed nothing, its form is 0 and not negative or undefined."""
    difference, g = of_a_linear_block(-torch.eye(6).double())
    difference[..., 0] = 0.0
    loss = LeastSquares(lambda: ([difference], [g]), "aligned")
    assert not loss.diagonals[0].any()
    assert not loss.factors[0].any()
    assert float(loss([difference], [torch.zeros_like(difference)], torch.arange(8))) == 0.0


# --- networks ---------------------------------------------------------------------------------------------------


def quantized(model: VisionModel, x: torch.Tensor, scheme: str = "matmul", bits: str = "W4A6") -> Any:
    graph = trace(model)
    sites = find_sites(graph, scheme, BitSpec.parse(bits))
    activations = activation_quantizers(sites, observe(model, x, sites, MinMax, 32))
    made = Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=False), activations)
    return graph, made


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_walks_give_what_the_whole_networks_give(network, scheme):
    model = tiny_model(network)
    x = images(5)
    graph, made = quantized(model, x, scheme)
    blocks = find_blocks(graph)
    floats, quants = (Walk(net, blocks, x, 2) for net in (model.net, made.net))
    for segment in cut(graph, blocks, made.sites.weights):
        unit = SegmentUnit(floats, quants, segment, graph, made.activations)
        with unit.session(made.activations, {}):
            output = unit.outputs(unit.inputs, floats.numbers)
        for site in segment.layers:
            layer = LayerUnit(unit, floats, quants, site, graph=graph, transforms=made.activations)
            assert len(layer.targets[0]) == len(x)
    torch.testing.assert_close(unit.targets[0], model.net(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output[0], made(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_of_the_output_loss(network):
    model = tiny_model(network)
    x = images(5)
    temperature = 3.0
    graph, made = quantized(model, x)
    blocks = find_blocks(graph)
    floats = Walk(model.net, blocks, x, 2)
    reference = model.net(x)
    for segment in cut(graph, blocks, made.sites.weights):
        targets = floats.every(segment, floats.enter(segment))
        values = [t + 0.1 * drawn(*t.shape) for t in targets]
        (found,) = gradients(model, floats, segment, values, outputs=floats.outputs, temperature=temperature)
        if floats.is_tail(segment):
            soft = functional.softmax(values[0] / temperature, -1) - functional.softmax(reference / temperature, -1)
            torch.testing.assert_close(found, soft / temperature, atol=1e-6, rtol=1e-4)
        elif segment.is_block:
            module = model.net.get_submodule(blocks[segment.index].path)
            leaf = values[0].clone().requires_grad_()
            handle = module.register_forward_hook(lambda _m, _args, _out, leaf=leaf: leaf)
            p = functional.softmax(reference / temperature, -1)
            logits = model.net(x) / temperature
            handle.remove()
            (p * (p.log() - logits.log_softmax(-1))).sum().backward()
            torch.testing.assert_close(found, leaf.grad, atol=1e-6, rtol=1e-3)


def phase(**changes: Any) -> Phase:
    return Phase(
        **{
            "steps": 40,
            "batch": 8,
            "inputs": "quantized",
            "weight_lr": 0.03,
            "regularization": 0.01,
            "annealing": Annealing(40, 0.2, 20.0, 2.0, "linear"),
            **changes,
        }
    )


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_reconstruction_beats_rounding_to_nearest(network, layerwise):
    model = tiny_model(network)
    x = images(8)
    graph, made = quantized(model, x, bits="W3A8")
    before = copy.deepcopy(model.net.state_dict())
    nearest = {name: q(model.net.get_parameter(name)) for name, q in made.weights.items()}
    engine = Engine(model, graph, made, x, FakeContext())
    engine.run(phase(layerwise=layerwise, activations=False))
    errors = np.array(list(engine.errors.values()))
    assert len(errors) == len(made.sites.weights) if layerwise else len(errors) >= len(find_blocks(graph)) + 2
    assert errors[:, 1].sum() < 0.9 * errors[:, 0].sum()
    assert (errors[:, 1] <= 1.05 * errors[:, 0]).all()

    moved = 0
    for site in made.sites.weights:
        weight, hard = model.net.get_parameter(site.parameter), made.net.get_parameter(site.parameter)
        base = weight_quantizer(weight, site.bits, symmetric=False)
        scale, low, high = base.aligned(weight.shape)
        steps = (hard - weight).abs() / scale
        inside = (weight >= low * scale) & (weight <= high * scale)
        assert (steps[inside] < 1 + 1e-4).all()  # one of the two neighbours
        moved += int((hard != nearest[site.parameter]).sum())
    assert moved > 0
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    for net in (model.net, made.net):
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())


@pytest.mark.fast(loss="mse")
@pytest.mark.parametrize("loss", ["mse", "fisher", "hessian", "low-rank", "least-squares"])
def test_scales_alone_are_learned_with_every_loss(loss):
    model = tiny_model("vit")
    x = images(8)
    graph, made = quantized(model, x, bits="W8A3")
    weights = copy.deepcopy(made.net.state_dict())
    start = {point: float(q.scale) for point, q in made.activations.items()}
    engine = Engine(model, graph, made, x, FakeContext())
    choice = LossChoice(loss, temperature=5.0, refreshes=2)
    engine.run(phase(weights=None, annealing=None, scale_lr=5e-3, relative=True, loss=choice))
    errors = np.array(list(engine.errors.values()))
    assert np.isfinite(errors).all()
    if loss == "mse":
        assert errors[:, 1].sum() < errors[:, 0].sum()
    assert all(torch.equal(value, weights[key]) for key, value in made.net.state_dict().items())
    changed = [point for point, q in made.activations.items() if float(q.scale) != start[point]]
    assert len(changed) > 0.9 * len(start)


def test_every_activation_site_belongs_to_one_unit():
    for network in NETWORKS:
        model = tiny_model(network)
        x = images(4)
        for scheme in ("full", "matmul"):
            graph, made = quantized(model, x, scheme)
            engine = Engine(model, graph, made, x, FakeContext())
            owned: list[Any] = []
            learn = engine._learn

            def spy(unit: Any, own: Any, ph: Any, learn: Any = learn, owned: Any = owned) -> None:
                owned += own
                learn(unit, own, ph)

            engine._learn = spy
            engine.run(phase(steps=1))
            assert sorted(map(str, owned)) == sorted(str(site.point) for site in made.sites.activations)


def test_seeds_decide():
    model = tiny_model("vit")
    results = []
    for seed in (0, 0, 1):
        graph, made = quantized(model, images(8))
        engine = Engine(model, graph, made, images(8), FakeContext(seed))
        engine.run(phase(steps=10, batch=4, inputs="mixed", drop=0.5, scale_lr=5e-3, relative=True))
        results.append(made(images(3, seed=5)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_plugins_say(name):
    info = Catalog.default().calibrators.get(name)
    assert info.trains == "quantizers"
    assert "trains" in info.summary
    assert info.partner == "real"
    for preset in ("quick", "default", "paper"):
        info.check_ablations(preset, {})
    paper = info.resolve("paper", {})
    assert paper.steps == (10000 if name == "adaround" else 20000)
    assert (paper.rounding_lr, paper.regularization, paper.warmup) == (1e-3, 0.01, 0.2)


class Numbered(torch.nn.Module):
    """A network that answers for an image and its number, as a detector does."""

    takes_numbers = True

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner(x) + (torch.arange(len(x)) if numbers is None else numbers)[:, None]


def test_images_keep_their_numbers_in_batches():
    net, x = Numbered(tiny_model("vit").net), images()
    blocks = find_blocks(trace_net(net, x.shape[1:]))
    walk = Walk(net, blocks, x, 2)
    tail = Segment(len(blocks), False, ())
    assert torch.allclose(walk.every(tail, walk.enter(tail))[0], net(x), atol=1e-4)


def test_learning_compares_an_image_with_its_own_output():
    """A constant of every image's own cancels in the error, unless another image's is compared with it."""
    errors = []
    for wrap in (lambda net: net, Numbered):
        model = tiny_model("vit")
        model = replace(model, net=wrap(model.net))
        graph, made = quantized(model, images(8), bits="W3A8")
        engine = Engine(model, graph, made, images(8), FakeContext())
        engine.run(phase(batch=3, activations=False))
        errors.append([after for _, after in engine.errors.values()])
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.05)
