"""Evol-Q's fitness and evolution against their definitions, written out plainly."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model

from harness.api.errors import UsageError
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.calibrators.evolq.calibrator import EvolQ, MomentMatched, scales_of, searched_layers, set_scales
from methods.calibrators.evolq.info import INFO as CALIBRATOR
from methods.calibrators.evolq.info import EvolqOptions
from methods.calibrators.evolq.search import Fitness, contrast, evolve, mutated
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.integer.calibrator import FqVit
from methods.core.numerics.quantizers import weight_quantizer

SMALL = {"passes": 2, "cycles": 3, "population": 4, "sample": 3}
ATTENTION = [["blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"],
             ["blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight"]]  # fmt: skip


def options(**changes) -> EvolqOptions:
    return CALIBRATOR.resolve("default", {**SMALL, **changes})


def calibrated(network: str, scheme: str = "full", bits: str = "W3A8", seed: int = 0, **changes):
    ctx = FakeContext(seed)
    quantized = EvolQ(options(**changes)).calibrate(
        tiny_model(network), images(), spec=BitSpec.parse(bits), scheme=scheme, ctx=ctx
    )
    return quantized, ctx


def explicit_loss(outputs: torch.Tensor, reference: torch.Tensor, temperature: float) -> float:
    """InfoNCE of a batch, image by image."""

    def cosine(a, b) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    total = 0.0
    for j, q in enumerate(outputs):
        scores = [cosine(q, k) / temperature for k in reference]
        total += math.log(sum(map(math.exp, scores))) - scores[j]
    return 2 * temperature * total / len(outputs)


# --- fitness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [3.0, 0.2])
def test_contrast_equals_the_definition(temperature):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 7, generator=g)
    assert contrast(a, b, temperature) == pytest.approx(explicit_loss(a, b, temperature), rel=1e-5)
    maps = [a.reshape(5, 7, 1, 1), {"other": b}]  # a detector's outputs
    expected = (explicit_loss(a, b, temperature) + explicit_loss(b, a, temperature)) / 2
    assert contrast(maps, [b.reshape(5, 7, 1, 1), {"other": a}], temperature) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_fitness_from_cached_blocks_is_that_of_the_whole_network(name, scheme):
    model = tiny_model(name)
    quantized = FqVit(options()).calibrate(
        model, images(), spec=BitSpec(4, 6), scheme=scheme, ctx=FakeContext()
    )  # fmt: skip
    graph = trace(model)
    blocks = find_blocks(graph)
    fitness = Fitness(model, quantized, graph, blocks, images(), batch=4, temperature=3.0)
    fitness.renew()
    for place in reversed(range(len(blocks))):
        names = searched_layers(graph, blocks[place], whole=True)
        set_scales(quantized, names, scales_of(quantized, names) * 1.1)
        expected = sum(
            len(part) * explicit_loss(quantized(part), model.net(part), 3.0) for part in images().split(4)
        ) / len(images())  # fmt: skip
        assert fitness.value(place) == pytest.approx(expected, rel=1e-5)
    assert fitness.evaluated == len(blocks)


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(5, 4, [5]), (7, 3, [3, 4]), (3, 2, [3]), (6, 4, [4, 2]), (6, 3, [3, 3]), (4, 9, [4]), (2, 2, [2])],
)
def test_every_image_is_contrasted_with_others(count, batch, sizes):
    model, x = tiny_model("vit"), images(count)
    quantized = FqVit(options()).calibrate(model, x, spec=BitSpec(4, 6), scheme="full", ctx=FakeContext())
    fitness = Fitness(model, quantized, trace(model), find_blocks(trace(model)), x, batch=batch, temperature=3.0)
    fitness.renew()
    parts = x.split(sizes)
    expected = sum(len(part) * explicit_loss(quantized(part), model.net(part), 3.0) for part in parts) / count
    assert fitness.value() == pytest.approx(expected, rel=1e-5)


def test_the_last_image_counts():
    """One beyond a batch was alone in the next, where its loss is 0 whatever is measured."""
    model, x, values = tiny_model("vit"), images(5), []
    quantized = FqVit(options()).calibrate(model, x, spec=BitSpec(4, 6), scheme="full", ctx=FakeContext())
    for other in (x, torch.cat([x[:4], images(1, seed=7)])):
        fitness = Fitness(
            model, quantized, trace(model), find_blocks(trace(model)), other, batch=4, temperature=3.0
        )  # fmt: skip
        fitness.renew()
        values.append(fitness.value())
    assert values[0] != pytest.approx(values[1], rel=1e-5)


def test_one_image_ranks_no_candidates():
    with pytest.raises(ValueError, match=r"one image has no other to contrast with: evolq .* take at least 2 images"):
        EvolQ(options()).calibrate(
            tiny_model("vit"), images(1), spec=BitSpec(4, 8), scheme="full", ctx=FakeContext()
        )  # fmt: skip


# --- evolution ------------------------------------------------------------------------------------------------------


def distance(v: torch.Tensor) -> float:
    return float((v - torch.tensor([0.5, 2.0, 1.0])).square().sum())


@pytest.mark.parametrize("relative", [True, False])
def test_mutation(relative):
    scales = torch.tensor([1e-4, 0.5, 3.0]).repeat(200)
    got = mutated(scales, 0.1, relative=relative, generator=torch.Generator().manual_seed(0))
    assert (got > 0).all()
    limit = 0.1 * scales if relative else torch.full_like(scales, 0.1)
    change = (got - scales).abs()
    assert (change <= limit + 1e-6).all()
    assert (change.view(-1, 3).amax(0) > 0.9 * limit[:3]).all()


def test_evolution_equals_an_explicit_loop_and_never_gets_worse():
    start = torch.ones(3)

    def evolved(cycles: int):
        generator = torch.Generator().manual_seed(3)
        seen = []

        def mutate(v):
            seen.append(v)
            return mutated(v, 0.3, relative=False, generator=generator)

        found = evolve(
            start, distance(start), distance, mutate, population=4, sample=3, cycles=cycles, generator=generator
        )  # fmt: skip
        return *found, seen

    losses = []
    for cycles in (0, 1, 5, 40):
        best, value, parents = evolved(cycles)
        assert value == pytest.approx(distance(best))
        assert len(parents) == cycles
        losses.append(value)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * losses[0] == 0.3 * distance(start)

    generator, members = torch.Generator().manual_seed(3), [start] * 4
    for _ in range(40):
        drawn = [members[i] for i in torch.randint(4, (3,), generator=generator)]
        parent = min(drawn, key=distance)
        members.append(mutated(parent, 0.3, relative=False, generator=generator))
        worst = max(map(distance, members))
        places = [i for i, member in enumerate(members) if distance(member) == worst]
        members.pop(places[-1])
    assert min(map(distance, members)) == losses[-1]


def test_candidates_of_equal_loss_leave_the_scales_alone():
    start = torch.ones(3)
    best, _ = evolve(
        start, 1.0, lambda _: 1.0, lambda v: v * 2, population=3, sample=2, cycles=5, generator=torch.Generator()
    )
    assert torch.equal(best, start)


# --- moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 30), (4, 2, 3, 5)])
def test_moment_matched_channels_have_the_float_moments(shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    weight[3] = 0.25  # rounded to one value
    q = weight_quantizer(weight, 3, symmetric=False)
    matched = MomentMatched(q.scale, q.zero_point, q.qmin, q.qmax, q.granularity)(weight)
    for float_channel, channel, rounded in zip(weight, matched, q(weight), strict=True):
        assert float(channel.mean()) == pytest.approx(float(float_channel.mean()), abs=1e-6)
        assert float(channel.std()) == pytest.approx(float(float_channel.std()), abs=1e-6)
        assert len(channel.unique()) <= len(rounded.unique()) <= 8


# --- the calibrator -------------------------------------------------------------------------------------------------


def test_attention_layers_are_found_from_the_data_flow():
    graph = trace(tiny_model("vit"))
    blocks = find_blocks(graph)
    assert [searched_layers(graph, block, whole=False) for block in blocks] == ATTENTION
    whole = searched_layers(graph, blocks[0], whole=True)
    assert whole == [*ATTENTION[0], "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"]
    graph = trace(tiny_model("swin"))
    names = [searched_layers(graph, block, whole=False) for block in find_blocks(graph)]
    assert len(names) == 4
    assert all([name.rsplit(".", 2)[-2] for name in found] == ["qkv", "proj"] for found in names)


@pytest.mark.fast(scheme="full")
@pytest.mark.parametrize("changes", [{}, {"moments": True}, {"epsilon_units": "absolute", "epsilon": None}])
@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_search_only_lowers_the_loss_and_only_moves_attention_scales(name, scheme, changes):
    model = tiny_model(name)
    quantized, ctx = calibrated(name, scheme, **changes)
    losses = ctx.found["evolq-loss"]["passes"]
    assert losses == sorted(losses, reverse=True)
    assert changes.get("epsilon_units") or losses[-1] < losses[0]
    # The last loss is the model's own, and the first that of FQ-ViT's calibrator.
    final = explicit_loss(quantized(images()), model.net(images()), 3.0)
    assert final == pytest.approx(losses[-1], rel=1e-4)
    start = FqVit(options()).calibrate(model, images(), spec=BitSpec(3, 8), scheme=scheme, ctx=FakeContext())
    if not changes.get("moments"):
        assert explicit_loss(start(images()), model.net(images()), 3.0) == pytest.approx(losses[0], rel=1e-4)
    graph = trace(model)
    attention = {n for block in find_blocks(graph) for n in searched_layers(graph, block, whole=False)}
    moved = {n for n, q in quantized.weights.items() if not torch.equal(q.scale, start.weights[n].scale)}
    assert bool(moved) == (losses[-1] < losses[0])
    assert moved <= attention
    assert all(torch.equal(q.zero_point, start.weights[n].zero_point) for n, q in quantized.weights.items())
    assert ctx.counters["candidates"] == 1 + 2 * 3 * len(find_blocks(graph))


def test_searching_whole_blocks_moves_the_mlp_too():
    start = calibrated("vit", passes=1, cycles=1, population=1)[0]
    quantized, _ = calibrated("vit", searched="block", passes=4)
    moved = {n for n, q in quantized.weights.items() if not torch.equal(q.scale, start.weights[n].scale)}
    assert any("mlp" in name for name in moved)
    assert not any("head" in name or "patch_embed" in name for name in moved)


def test_equal_seeds_give_equal_models():
    x = images(3, 5)
    outputs = [calibrated("vit", seed=seed)[0](x) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_published_step_follows_the_width():
    calibrator = EvolQ(CALIBRATOR.resolve("paper", {}))
    assert [calibrator._epsilon(BitSpec(bits, 8)) for bits in (3, 4, 6, 8)] == [1e-3, 1e-3, 1e-3, 1e-4]
    assert EvolQ(options())._epsilon(BitSpec(8, 8)) == 0.05


def test_selection_by_validation_is_refused():
    catalog = Catalog.default()
    with pytest.raises(UsageError, match=r"option evolq\.select: the reference selects with validation accuracy"):
        catalog.resolve("evolq[select=validation]")
    with pytest.raises(UsageError, match=r"option evolq\.select: Input should be 'calibration'"):
        catalog.resolve("evolq[select=test]")
    assert catalog.resolve("evolq[select=calibration]").name == "real+evolq"  # as it is anyway
