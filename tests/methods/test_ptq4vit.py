"""PTQ4ViT's twin quantizers, metrics and search against straightforward formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CLASSES, NETWORKS, FakeContext, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.images import ImageSet
from harness.api.spec import BitSpec
from methods.calibrators.baseptq.info import INFO as BASEPTQ
from methods.calibrators.baseptq.info import BaseOptions
from methods.calibrators.ptq4vit.info import INFO as PTQ4VIT
from methods.core.graph.intercept import OUTPUT, OpKey, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.layer_search import capture as capture_module
from methods.core.layer_search.calibrator import StepSearch
from methods.core.layer_search.capture import Gradients, Target, capture
from methods.core.layer_search.grids import (
    GeluGrid,
    SoftmaxGrid,
    SymmetricGrid,
    extremes,
    linear_factors,
)
from methods.core.layer_search.metrics import (
    METRICS,
    by_channels,
    by_features,
    by_heads,
    by_images,
    choose,
    cosine,
    hessian,
)
from methods.core.layer_search.operations import Convolution, Itself, Linear, Product
from methods.core.layer_search.options import SearchOptions
from methods.core.layer_search.plan import plan
from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax
from methods.core.layer_search.search import Factor, Part, Problem, cut, scores, search
from methods.core.numerics.functions import GELU_MINIMUM
from methods.core.numerics.granularity import PerChannel, PerHead
from methods.core.numerics.quantizers import Uniform


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(x, step, bits):
    return (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step


# --- quantizers ---------------------------------------------------------------------------------------------------


def softmax_rows() -> torch.Tensor:
    """Attention of 197 tokens, some sharp and some even."""
    sharpness = torch.linspace(0.5, 6, 64, dtype=torch.float64)[:, None]
    return functional.softmax(sharpness * normal(64, 197), -1)


def partition_by_hand(x, split, bits):
    top = 2 ** (bits - 1) - 1
    fine = (x / (split / top)).round().clamp(0, top) * (split / top)
    coarse = (x / (1 / top)).round().clamp(0, top) * (1 / top)
    return torch.where(x <= split, fine, coarse)


def sum_by_hand(x, split, bits):
    top = 2 ** (bits - 1) - 1
    coarse = (x.clamp(split, 1) * top).round() / top
    fine = (x.clamp(0, split) * top / split).round() * split / top
    return coarse + fine


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("exponent", [0, 3, 10])
def test_twin_softmax_equals_both_forms_by_hand(bits, exponent):
    x, split = softmax_rows(), 2.0**-exponent
    assert torch.allclose(TwinSoftmax(bits, split)(x), partition_by_hand(x, split, bits), rtol=0, atol=1e-12)
    assert torch.allclose(TwinSoftmax(bits, split, True)(x), sum_by_hand(x, split, bits), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("bits", "factor"), [(8, 4.0), (6, 2.5), (4, 1.2)])
def test_the_partition_beats_the_sum_on_softmax_rows(bits, factor):
    """Appendix B of METHODS: RMSE 2.4e-4 against 1.8e-3 at 8 bits, 9.4e-4 against 4.1e-3, 3.6e-3 against 6.1e-3."""
    x = softmax_rows()
    best = {
        summed: min(float((TwinSoftmax(bits, 2.0**-i, summed)(x) - x).square().mean().sqrt()) for i in range(20))
        for summed in (False, True)
    }
    assert best[False] * factor < best[True]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 19))
def test_twin_softmax_codes_and_range(bits, exponent):
    q = TwinSoftmax(bits, 2.0**-exponent)
    x = torch.cat([torch.linspace(0, 1, 3000), torch.linspace(0, 2.0**-exponent, 3000)])
    once = q(x)
    assert len(once.unique()) <= 2**bits
    assert (float(q.low), float(q.high)) == (0.0, 1.0)
    assert torch.allclose(q(once), once, rtol=0, atol=1e-7)
    top = 2 ** (bits - 1) - 1
    step = torch.where(x <= 2.0**-exponent, 2.0**-exponent / top, torch.tensor(1 / top))
    assert ((once - x).abs() <= step / 2 + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.floats(0.001, 2.0))
def test_twin_gelu_is_the_sum_of_both_ranges(bits, positive):
    half = 2 ** (bits - 1)
    x = functional.gelu(normal(4000) * 3).float()
    q = TwinGelu(bits, torch.tensor(GELU_MINIMUM / half), torch.tensor(positive))
    low = (x / (GELU_MINIMUM / half)).round().clamp(-half, 0) * (GELU_MINIMUM / half)
    high = (x / positive).round().clamp(0, half - 1) * positive
    assert torch.allclose(q(x), low + high, atol=1e-6)
    assert len(q(x).unique()) <= 2**bits
    assert float(q.low) == pytest.approx(-GELU_MINIMUM)
    assert float(q.high) == pytest.approx((half - 1) * positive)


def test_twin_gradients_pass_straight_through_inside_the_range():
    for q, outside in ((TwinSoftmax(4, 0.25), 1.5), (TwinGelu(4, torch.tensor(0.02), torch.tensor(0.1)), 5.0)):
        x = torch.tensor([0.1, 0.5, outside], requires_grad=True)
        y = q(x)
        y.sum().backward()
        assert torch.equal(x.grad, torch.tensor([1.0, 1.0, 0.0]))
        assert torch.allclose(y.detach(), q(x.detach()))


def test_heads_have_steps_of_their_own_and_one_range():
    x = normal(2, 3, 4, 5).float() * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1)
    grid = SymmetricGrid(4, extremes([x], PerChannel(1)), linear_factors(0.5, 1.2, 10), PerChannel(1))
    q = grid.quantizer(torch.tensor([0, 5, 9]))
    for head, factor in enumerate((0.5, 0.85, 1.13)):
        step = x[:, head].abs().max() / 7.5 * factor
        assert torch.allclose(q(x)[:, head], symmetric(x[:, head], step, 4), atol=1e-6)
    assert float(q.low) == pytest.approx(float(-8 * x[:, 1].abs().max() / 7.5 * 0.85))
    assert q.low.dim() == q.high.dim() == 0


# --- candidates ---------------------------------------------------------------------------------------------------


def test_linear_candidates_are_the_papers_without_their_end():
    factors = linear_factors(0.01, 1.2, 100)
    assert len(factors) == 100
    assert float(factors[0]) == pytest.approx(0.01)
    assert float(factors[99]) == pytest.approx(0.01 + 99 * 1.19 / 100)


def grids(x: torch.Tensor):
    factors = linear_factors(0.1, 1.2, 7)
    yield SymmetricGrid(4, extremes([x]), factors)
    yield SymmetricGrid(5, extremes([x], PerHead(0, 2)), factors, PerHead(0, 2))
    yield SoftmaxGrid(4, summed=False)
    yield SoftmaxGrid(5, summed=True)
    yield GeluGrid(4, x.max(), GELU_MINIMUM, factors)
    yield GeluGrid(4, x.max(), GELU_MINIMUM, None)


def test_candidates_are_what_their_quantizers_do():
    x = normal(6, 5).float().abs()
    for grid in grids(x):
        together = grid.rounded(x, slice(0, grid.count))
        assert together.shape == (grid.count, *x.shape)
        for i in range(grid.count):
            single = grid.quantizer(torch.full((grid.groups,), i))(x)
            assert torch.allclose(together[i], single, atol=1e-6)
        assert torch.allclose(grid.rounded(x, slice(2, 4)), together[2:4])
        assert torch.isfinite(grid.quantizer(None)(x)).all()


def test_the_positive_step_is_aligned_with_the_negative_one():
    for highest in (0.01, 3.0, 40.0):
        grid = GeluGrid(6, torch.tensor(highest), GELU_MINIMUM, None)
        for choice in (None, torch.tensor([0]), torch.tensor([13])):
            q = grid.quantizer(choice)
            assert float(torch.log2(q.positive / q.negative)) == pytest.approx(
                round(float((q.positive / q.negative).log2()))
            )
        start = grid.quantizer(None)
        assert float(start.high) >= highest * 31 / 31.5 - 1e-6


# --- metrics ------------------------------------------------------------------------------------------------------


def test_the_hessian_metric_of_a_tiny_layer_is_the_explicit_sum():
    x, weight, g = normal(2, 3, 4), normal(6, 4, seed=1), normal(2, 3, 6, seed=2)
    bias = normal(6, seed=3)
    reference = x @ weight.T + bias
    candidates = torch.stack([symmetric(weight, step, 4) for step in (0.1, 0.3, 0.5)])
    outputs = Linear(bias).candidates(1, candidates, (x, weight))
    got = hessian(outputs, reference, g, by_features(2))
    for c, rounded in enumerate(candidates):
        for group in range(2):
            expected = 0.0
            for image in range(2):
                for token in range(3):
                    for out in range(3 * group, 3 * group + 3):
                        value = float(x[image, token] @ rounded[out] + bias[out])
                        difference = value - float(reference[image, token, out])
                        expected += (float(g[image, token, out]) * difference) ** 2
            assert float(got[c, group]) == pytest.approx(expected, rel=1e-9)


def test_the_cosine_metric_is_the_sum_over_tokens_and_heads_apart():
    a, b = normal(2, 3, 4, 5), normal(2, 3, 5, 4, seed=1)
    candidates = torch.stack([symmetric(a, step, 4) for step in (0.1, 0.4)])
    outputs = Product().candidates(0, candidates, (a, b))
    got = cosine(outputs, a @ b, None, by_heads)
    for c in range(2):
        similarity = functional.cosine_similarity(candidates[c] @ b, a @ b, dim=-1)  # (n, heads, tokens)
        assert torch.allclose(got[c], -similarity.sum(dim=(0, 2)))


def test_channels_and_whole_images_as_features():
    outputs, reference = normal(2, 3, 4, 5), normal(3, 4, 5, seed=1)
    got = cosine(outputs.clone(), reference, None, by_channels)
    assert torch.allclose(got, -functional.cosine_similarity(outputs, reference[None], dim=2).sum(1))
    got = cosine(outputs.clone(), reference, None, by_images)
    expected = functional.cosine_similarity(outputs.flatten(2), reference.flatten(1)[None], dim=2).sum(1)
    assert torch.allclose(got, -expected[:, None])


@pytest.mark.parametrize("which", [0, 1])
def test_operations_compute_candidates_as_one_by_one(which):
    conv = Convolution((normal(4, seed=5), 2, 1), {"groups": 2})
    cases = [
        (Linear(normal(6, seed=3)), (normal(2, 3, 4), normal(6, 4, seed=1))),
        (Linear(), (normal(2, 2, 3, 4), normal(6, 4, seed=1))),
        (conv, (normal(2, 4, 6, 6), normal(4, 2, 3, 3, seed=1))),
        (Product(), (normal(2, 3, 4, 5), normal(2, 3, 5, 4, seed=1))),
    ]
    for operation, factors in cases:
        candidates = torch.stack([factors[which] * f for f in (0.5, 1.0, 2.0)])
        got = operation.candidates(which, candidates, factors)
        for i, candidate in enumerate(candidates):
            pair = (candidate, factors[1]) if which == 0 else (factors[0], candidate)
            assert torch.allclose(got[i], operation.output(pair))


def test_the_first_of_equal_candidates_is_chosen():
    values = torch.tensor([[3.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
    assert choose(values, 2).tolist() == [1, 0]
    assert choose(values, 1).tolist() == [2]
    with pytest.raises(ValueError, match="2 groups"):
        choose(values, 3)


# --- search -------------------------------------------------------------------------------------------------------


def layer_problem(metric: str, groups: int = 3):
    x, weight, g = normal(8, 5, 6), normal(9, 6, seed=1), normal(8, 5, 9, seed=2)
    parts = cut((x, weight), g, Linear(), 1)
    factors = linear_factors(0.01, 1.2, 40).double()
    grids = [
        SymmetricGrid(4, extremes([x]), factors),
        SymmetricGrid(3, extremes([weight], PerHead(0, groups)), factors, PerHead(0, groups)),
    ]
    return Problem(Linear(), parts, METRICS[metric], by_features(groups)), grids, (x, weight, g, factors)


@pytest.mark.parametrize("metric", ["hessian", "cosine"])
def test_the_search_takes_the_best_of_an_explicit_loop(metric):
    problem, (for_x, for_w), (x, weight, g, factors) = layer_problem(metric)
    found = [Factor(for_x), Factor(for_w)]
    search(problem, found, (1, 0), 3)

    reference = x @ weight.T

    def loss(a, b):
        if metric == "hessian":
            return ((a - b) * g[..., : a.shape[-1]]).square().sum()
        return -functional.cosine_similarity(a, b, dim=-1).sum()

    x_step, w_steps = x.abs().max() / 7.5, [w.abs().max() / 3.5 for w in weight.split(3)]
    x_choice, w_choice, w_losses = None, [0, 0, 0], [[], [], []]
    for _ in range(3):
        rounded = symmetric(x, x_step if x_choice is None else x_step * factors[x_choice], 4)
        for i, rows in enumerate(weight.split(3)):
            w_losses[i] = []
            for factor in factors:
                out, ref = rounded @ symmetric(rows, w_steps[i] * factor, 3).T, reference[..., 3 * i : 3 * i + 3]
                difference = (out - ref) * g[..., 3 * i : 3 * i + 3]
                w_losses[i].append(float(difference.square().sum() if metric == "hessian" else loss(out, ref)))
            w_choice[i] = w_losses[i].index(min(w_losses[i]))
        chosen = torch.cat([symmetric(r, w_steps[i] * factors[w_choice[i]], 3) for i, r in enumerate(weight.split(3))])
        losses = []
        for factor in factors:
            out = symmetric(x, x_step * factor, 4) @ chosen.T
            pieces = zip(out.split(3, -1), reference.split(3, -1), strict=True)
            losses.append(float(loss(out, reference)) if metric == "hessian" else sum(float(loss(*p)) for p in pieces))
        x_choice = losses.index(min(losses))
    # Choices that the cosine cannot tell apart (the same codes, another step) may differ by rounding errors.
    assert losses[found[0].choice.item()] == pytest.approx(losses[x_choice], rel=1e-6)
    for i, choice in enumerate(found[1].choice.tolist()):
        assert w_losses[i][choice] == pytest.approx(w_losses[i][w_choice[i]], rel=1e-6)
    if metric == "hessian":
        assert found[0].choice.tolist() == [x_choice]
        assert torch.allclose(found[1].quantizer(weight), chosen)


def test_batches_of_candidates_and_rows_change_nothing(monkeypatch):
    results = []
    for largest in (2**21, 100):
        monkeypatch.setattr("methods.core.numerics.chunks._LARGEST", {"cpu": largest})
        problem, (for_x, for_w), _ = layer_problem("hessian")
        assert (len(problem.parts) > 1) == (largest == 100)
        results.append(scores(problem, [Factor(for_x), Factor(for_w)], 1))
    assert torch.allclose(*results)


def test_rounds_that_would_repeat_are_left_out():
    problem, (for_x, for_w), _ = layer_problem("hessian")
    many, few = [Factor(for_x), Factor(for_w)], [Factor(for_x), Factor(for_w)]
    computed = search(problem, many, (1, 0), 50)
    assert computed < 50 * 80
    search(problem, few, (1, 0), computed // 80 + 1)
    assert [f.choice.tolist() for f in many] == [f.choice.tolist() for f in few]
    assert search(problem, [Factor(), Factor(for_w)], (1, 0), 3) == 40


def test_a_factor_searched_alone_leaves_the_other_in_float():
    a, b = functional.softmax(normal(2, 3, 4, 4) * 3, -1), normal(2, 3, 4, 5, seed=1)
    parts = cut((a, b), None, Product(), 2)
    problem = Problem(Product(), parts, hessian, by_heads)
    split = Factor(SoftmaxGrid(4, summed=True), alone=True)
    values = Factor(SymmetricGrid(2, extremes([b]), linear_factors(0.01, 1.2, 10)))
    search(problem, [split, values], (0, 1), 2)
    losses = [float((sum_by_hand(a, 2.0**-i, 4) @ b - a @ b).square().sum()) for i in range(20)]
    assert split.choice.tolist() == [losses.index(min(losses))]


def test_a_tensor_by_itself_is_searched_too():
    x, g = normal(4, 5, 6), normal(4, 5, 6, seed=1)
    factors = linear_factors(0.01, 1.2, 30).double()
    found = Factor(SymmetricGrid(3, extremes([x]), factors))
    search(Problem(Itself(), [Part((x,), x, g)], hessian, by_images), [found], (0,), 3)
    losses = [float(((symmetric(x, x.abs().max() / 3.5 * f, 3) - x) * g).square().sum()) for f in factors]
    assert found.choice.tolist() == [losses.index(min(losses))]


# --- networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_site_is_searched_once(network, scheme):
    model = tiny_model(network)
    graph = trace(model)
    sites = find_sites(graph, scheme, BitSpec(4, 6))
    units = plan(graph, sites)
    searched = [a.point for unit in units for a in unit.activations if a.searched]
    assert sorted(searched) == sorted(site.point for site in sites.activations)
    assert sorted(u.weight for u in units if u.weight) == sorted(site.parameter for site in sites.weights)
    assert {u.weight.split(".")[-2] for u in units if u.pieces != 1} == {"qkv"}
    assert {u.pieces for u in units if u.pieces != 1} == {3}
    if scheme == "matmul":
        assert all(unit.product for unit in units)


class Pyramid(nn.Module):
    """A head that runs on two sizes, another that shares its weight, and an activation function that is not GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 4)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)
        self.twin = nn.Linear(8, CLASSES)
        self.twin.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = functional.silu(self.fc(x))
        y += x
        return self.head(y).mean(1) + self.head(y[:, ::2]).mean(1) + self.twin(x).mean(1)


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_shared_layers_and_weights(scheme):
    torch.manual_seed(0)
    model = replace(tiny_model("vit"), net=Pyramid().eval().requires_grad_(False))
    spec, x = BitSpec(6, 6), images(6)
    sites = find_sites(trace(model), scheme, spec)
    searched = [a.point for u in plan(trace(model), sites) for a in u.activations if a.searched]
    assert sorted(searched) == sorted({site.point for site in sites.activations})
    for options in (SearchOptions(batch=4), BaseOptions(weights="channel")):
        found = StepSearch(options).calibrate(model, x, spec=spec, scheme=scheme, ctx=FakeContext())
        assert float((found(x) - model.net(x)).norm() / model.net(x).norm()) < 0.3
        assert {type(q) for q in found.activations.values()} <= {Uniform, TwinGelu}


def test_twin_quantizers_stand_behind_softmax_and_gelu_only():
    model = tiny_model("vit")
    found = StepSearch(SearchOptions(candidates=4, rounds=1)).calibrate(
        model, images(), spec=BitSpec(4, 6), scheme="matmul", ctx=FakeContext()
    )
    kinds = {str(site): type(found.activations[site.point]) for site in found.sites.activations}
    assert {name for name, kind in kinds.items() if kind is TwinSoftmax} == {
        f"blocks.{i}.attn/matmul.1:in0" for i in range(2)
    }
    assert {name for name, kind in kinds.items() if kind is TwinGelu} == {
        f"blocks.{i}.mlp.fc2/linear.0:in0" for i in range(2)
    }
    heads = {str(s) for s in found.sites.activations if getattr(found.activations[s.point], "axis", None) == 1}
    assert heads == {f"blocks.{i}.attn/matmul.{m}:in{s}" for i in range(2) for m, s in ((0, 0), (0, 1), (1, 1))}
    assert all(found.activations[s.point].scale.shape == (2,) for s in found.sites.activations if str(s) in heads)
    # One step for a layer, three for a fused one; an output channel each in the convolution.
    for name, quantizer in found.weights.items():
        steps = len(quantizer.scale) if "patch_embed" in name else 3 if "qkv" in name else 1
        assert len(quantizer.scale.unique()) == steps
    full = StepSearch(SearchOptions(candidates=4, rounds=1)).calibrate(
        model, images(), spec=BitSpec(4, 6), scheme="full", ctx=FakeContext()
    )
    twins = {str(s) for s in full.sites.activations if isinstance(full.activations[s.point], TwinGelu)}
    assert twins == {f"blocks.{i}.mlp.act/activation.0:out" for i in range(2)}


def test_a_layers_choice_in_a_network_is_that_of_a_loop():
    """fc1 of the first block with the gradient of the float network, from torch's own autograd."""
    model, x = tiny_model("vit"), images(6)
    options = SearchOptions(candidates=20, rounds=1, gradient="argmax")
    found = StepSearch(options).calibrate(model, x, spec=BitSpec(4, 6), scheme="matmul", ctx=FakeContext())

    layer = model.net.blocks[0].mlp.fc1
    kept = {}

    def hook(_module, args, output):
        kept["x"], kept["y"] = args[0].detach(), output.detach().requires_grad_()
        return kept["y"]

    handle = layer.register_forward_hook(hook)
    logits = model.net(x)
    handle.remove()
    functional.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum").backward()
    step = kept["x"].abs().max() / 31.5
    losses = []
    for factor in linear_factors(0.01, 1.2, 20):
        weight = symmetric(layer.weight, layer.weight.abs().max() / 7.5 * factor, 4)
        out = functional.linear(symmetric(kept["x"], step, 6), weight, layer.bias)
        losses.append(float(((out - kept["y"].detach()) * kept["y"].grad).square().sum()))
    best = linear_factors(0.01, 1.2, 20)[losses.index(min(losses))]
    got = found.weights["blocks.0.mlp.fc1.weight"].scale
    assert torch.allclose(got, (layer.weight.abs().max() / 7.5 * best).expand(len(got)))


@pytest.mark.slow
def test_float_inputs_are_captured_whatever_the_batches(monkeypatch):
    model, x = tiny_model("swin"), images(6)
    graph = trace(model)
    sites = find_sites(graph, "full", BitSpec(4, 6))
    targets = [Target(u.point, u.product) for u in plan(graph, sites)]
    results = []
    for held, batch in ((2**30, 6), (1, 4)):
        monkeypatch.setattr(capture_module, "_HELD", held)
        gradients = Gradients("quantized", model, sites, x, batch)
        results.append(dict(capture(model, x, targets, gradients, batch)))
    first, second = results
    assert list(first) == list(second) == targets
    for target in targets:
        for a, b in zip(first[target].inputs, second[target].inputs, strict=True):
            assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(a, b, strict=True) if p.shape == q.shape)
        assert any(bool(g.any()) for g in first[target].gradients)
    key = OpKey("head.fc", "linear", 0)
    _, tapped = tap(model.net, x, [(key, 0)])
    assert torch.allclose(first[Target((key, OUTPUT), True)].inputs[0][0], tapped[key, 0], atol=1e-5)


def test_gradients_mean_something_unless_they_are_the_references():
    model, x = tiny_model("vit"), images(4)
    sites = find_sites(trace(model), "matmul", BitSpec(4, 4))
    point = (OpKey("blocks.0.mlp.fc1", "linear", 0), OUTPUT)
    size = {
        kind: float(Gradients(kind, model, sites, x, 4).of(ImageSet.whole(x), [point])[point][0].norm())
        for kind in ("quantized", "argmax", "reference")
    }
    assert size["reference"] < 1e-4 * min(size["quantized"], size["argmax"])
    assert not any(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("changes", [{}, *PTQ4VIT.ablations.values()], ids=str)
def test_options_run_and_repeat(changes):
    model, x = tiny_model("vit"), images()
    outputs = []
    for _ in range(2):
        options = PTQ4VIT.resolve("quick", {"candidates": 8, **changes})
        found = StepSearch(options).calibrate(model, x, spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
        outputs.append(found(images(seed=7)))
        ends = found.summary.activation_ranges.values()
        assert all(low <= 0 <= high for low, high in ends)
    assert torch.equal(*outputs)
    assert torch.isfinite(outputs[0]).all()


def test_the_search_lowers_the_networks_error():
    """The Hessian-guided search with twin quantizers against BasePTQ, as in the paper's table 4."""
    model, x, unseen = tiny_model("vit"), images(16), images(64, seed=3)
    error = {}
    for name, options in (("ptq4vit", SearchOptions()), ("baseptq", BaseOptions())):
        found = StepSearch(options).calibrate(model, x, spec=BitSpec(6, 4), scheme="matmul", ctx=FakeContext())
        error[name] = float((found(unseen) - model.net(unseen)).square().mean())
    assert error["ptq4vit"] < error["baseptq"]


def test_baseptq_has_its_own_defaults():
    base = BASEPTQ.resolve("paper", {})
    assert (base.metric, base.twin, base.alpha, base.beta, base.candidates, base.rounds) == (
        "cosine",
        "none",
        0.5,
        1.2,
        100,
        1,
    )
    found = StepSearch(base).calibrate(
        tiny_model("vit"), images(), spec=BitSpec(4, 6), scheme="matmul", ctx=FakeContext()
    )
    assert all(isinstance(q, Uniform) for q in found.activations.values())


def test_only_a_classifier_has_a_class_of_its_own():
    model = tiny_model("vit")
    other = replace(model, task="detection")
    options = SearchOptions(gradient="argmax")
    assert StepSearch(options).skip(model, spec=BitSpec(4, 4), scheme="full") is None
    assert "classifier" in StepSearch(options).skip(other, spec=BitSpec(4, 4), scheme="full")
    assert StepSearch(SearchOptions()).skip(other, spec=BitSpec(4, 4), scheme="full") is None
