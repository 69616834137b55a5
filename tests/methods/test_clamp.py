"""CLAMP-ViT's losses, segment replay and search."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn
from torch.utils._pytree import tree_map

from harness.api.contracts import VisionModel
from harness.api.errors import UsageError
from harness.api.images import ImageSet
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.calibrator import ClampSearch
from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.search import Search
from methods.calibrators.clamp_search.working import Working
from methods.core.budget import Budget, BudgetError
from methods.core.contrast import output_contrast, patch_contrast
from methods.core.graph.outputs import split, tensor_pairs
from methods.core.graph.segments import cut
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.numerics.quantizers import weight_quantizer
from methods.core.segment_runner import SegmentRunner, float_outputs
from methods.end_to_end.clamp.info import INFO as METHOD
from methods.end_to_end.clamp.info import ClampOptions
from methods.end_to_end.clamp.method import Clamp
from methods.sources.clamp.info import SynthesisStage
from methods.sources.clamp.source import ClampImages, Stage1
from tasks.models.attention import unfused


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("positives", [1, 4, 6])
def test_patch_contrast_equals_the_definition(positives):
    g = torch.Generator().manual_seed(0)
    anchors, patches = (torch.randn(2, 4, 3, 5, generator=g) for _ in range(2))
    total, count = 0.0, 0
    for j in range(2):
        for y in range(4):
            for x in range(3):
                near = [
                    cosine(anchors[j, y, x], patches[j, y + dy, x + dx]) / 0.2
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if (dy, dx) != (0, 0) and 0 <= y + dy < 4 and 0 <= x + dx < 3
                ]
                wanted = max(1, len(near) * positives // 8)
                best = sorted(near, reverse=True)[:wanted]
                total += math.log(sum(map(math.exp, near))) - sum(best) / wanted
                count += 1
    assert float(patch_contrast(anchors, patches, 0.2, positives)) == pytest.approx(total / count, rel=1e-5)


def test_patch_contrast_pulls_through_the_float_branch_only():
    g = torch.Generator().manual_seed(0)
    anchors, patches = (torch.randn(1, 3, 3, 4, generator=g).requires_grad_() for _ in range(2))
    patch_contrast(anchors, patches, 0.1, 4).backward()
    assert anchors.grad is None
    assert torch.isfinite(patches.grad).all()
    assert float(patches.grad.norm()) > 0


def test_output_contrast_equals_the_definition():
    g = torch.Generator().manual_seed(0)
    q, f = (torch.randn(4, 2, 3, 5, generator=g) for _ in range(2))
    u, v = (x.reshape(4, 6, 5).mean(1) for x in (q, f))
    expected = 0.0
    for j in range(4):
        scores = [cosine(u[j], v[m]) / 0.3 for m in range(4)]
        expected += (math.log(sum(map(math.exp, scores))) - scores[j]) / 4
    assert float(output_contrast(q, f, 0.3)) == pytest.approx(expected, rel=1e-5)


def working_tiny(name: str, bits: str = "W4A6", scheme: str = "full", **options):
    model = tiny_model(name)
    graph = trace(model)
    spec = BitSpec.parse(bits)
    x = images()
    return model, graph, Working(model, find_sites(graph, scheme, spec), spec, SearchStage(**options), x), x


@pytest.mark.parametrize("name", NETWORKS)
def test_segments_hold_every_layer_once_and_in_order(name):
    _, graph, working, _ = working_tiny(name)
    segments = cut(graph, find_blocks(graph), working.quantized.sites.weights)
    found = [layer.parameter for segment in segments for layer in segment.layers]
    assert found == [site.parameter for site in working.quantized.sites.weights]


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_candidates_from_caches_equal_the_whole_forward_pass(name, scheme):
    """For every layer: evaluate three candidates in a batch, and compare each with running the model from the image."""
    _model, graph, working, x = working_tiny(name, "W4A8", scheme)
    quantized = working.quantized
    blocks = find_blocks(graph)
    changed: list[bool] = []
    with SegmentRunner(quantized, graph, blocks, ImageSet.whole(x)) as runner:
        for segment in cut(graph, blocks, quantized.sites.weights):
            runner.enter(segment)
            for site in segment.layers:
                before = runner.record(segment)
                genes = [Gene(4, 1.0), Gene(4, 0.8), Gene(4, 0.9)]
                batch = runner.candidates(segment, site, working.weights(site.parameter, genes))
                for gene, fast in zip(genes, split(batch, 3), strict=True):
                    logits = runner.logits(segment, fast)  # with another gene in use
                    working.set({site.parameter: gene})
                    assert torch.equal(
                        working.weights(site.parameter, [gene])[0],
                        dict(quantized.net.named_parameters())[site.parameter],
                    )
                    assert torch.allclose(fast, runner.run(segment), atol=1e-5)
                    assert torch.allclose(logits, quantized.net(x), atol=1e-5)
                    single = runner.candidates(segment, site, working.weights(site.parameter, [gene]))
                    assert torch.equal(single, runner.run(segment))
                working.set({site.parameter: Gene(4, 1.0)})
                changed.append(not torch.equal(split(batch, 3)[1], before))
    # Coarse activations may swallow a change here and there, but not often.
    assert sum(changed) > 0.5 * len(changed)
    assert torch.equal(quantized(x), quantized(x))


SMALL = {"population": 4, "cycles": 2, "passes": 1, "output_loss": "accept"}


class Pyramid(nn.Module):
    """A plain ViT whose block outputs feed convolutions without a norm between, added to each other in place."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = NETWORKS["vit"]()
        self.laterals = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))
        self.shared = nn.Conv2d(8, 3, 3, padding=1)  # runs on both levels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.vit._pos_embed(self.vit.patch_embed(x))
        levels = []
        for block in self.vit.blocks:
            x = block(x)
            levels.append(x[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        maps[0] += maps[1]
        return tuple(self.shared(m) for m in maps)


def pyramid_model() -> VisionModel:
    torch.manual_seed(0)
    net = unfused(Pyramid().eval()).requires_grad_(False)

    def distance(first: Any, second: Any) -> torch.Tensor:
        return sum((a - b).square().mean() for a, b in zip(first, second, strict=True))

    return replace(tiny_model("vit"), net=net, output_distance=distance)


@pytest.mark.parametrize("bits", ["W4A8", "MP5"])
def test_a_network_with_a_pyramid_is_evaluated_exactly(bits):
    """Shared heads, in-place addition, and activations of one segment that follow a layer of the next."""
    model = pyramid_model()
    graph = trace(model)
    spec, x = BitSpec.parse(bits), images()
    working = Working(model, find_sites(graph, "full", spec), spec, SearchStage(), x)
    fitness = Fitness(model, graph, working, SearchStage(), x)
    with fitness.runner as runner:
        for segment in fitness.segments:
            for site in segment.layers:
                runner.enter(segment)
                runner.record(segment)
                old = working.genes[site.parameter]
                genes = [Gene(old.bits, 0.8), Gene(old.bits, 0.6)]
                fast = split(runner.candidates(segment, site, working.weights(site.parameter, genes)), 2)
                logits = [runner.logits(segment, output) for output in fast]
                for gene, found in zip(genes, logits, strict=True):
                    working.set({site.parameter: gene})
                    for a, b in tensor_pairs(found, working.quantized.net(x)):
                        assert torch.allclose(a, b, atol=1e-5)
                for bits_ in working.widths:
                    working.set({site.parameter: Gene(bits_, 1.0)})
                    fitness.renew_activations(segment, site.parameter)
                    found = runner.logits(segment, runner.run(segment))
                    for a, b in tensor_pairs(found, working.quantized.net(x)):
                        assert torch.equal(a, b)
                working.set({site.parameter: old})
                fitness.renew_activations(segment, site.parameter)


@pytest.mark.parametrize("make", [lambda: tiny_model("vit"), lambda: tiny_model("swin"), pyramid_model])
def test_the_layer_loss_averages_over_tokens_and_not_over_channels(make):
    model = make()
    graph = trace(model)
    spec, x = BitSpec.parse("W4A8"), images()
    working = Working(model, find_sites(graph, "full", spec), spec, SearchStage(), x)
    fitness = Fitness(model, graph, working, SearchStage(), x)
    g = torch.Generator().manual_seed(0)
    for segment in fitness.segments:
        tail = not segment.is_block and segment.index == len(fitness.blocks)

        def flipped(value: torch.Tensor, channels: bool, tail: bool = tail) -> torch.Tensor:
            own = value.dim() - 3 if tail and value.dim() >= 4 else value.dim() - 1
            return value.flip([axis for axis in range(1, value.dim()) if (axis == own) == channels])

        output = tree_map(lambda v: v + 0.1 * torch.randn(v.shape, generator=g), fitness.reference(segment))
        loss = fitness.local(segment, output)
        places, channels = (tree_map(lambda v, c=c: flipped(v, c), output) for c in (False, True))
        assert torch.allclose(fitness.local(segment, places), loss, atol=1e-5)
        assert not torch.allclose(fitness.local(segment, channels), loss, atol=1e-3)


@pytest.mark.fast(bits="MP4.5", options={})
@pytest.mark.parametrize("options", [{}, {"order": "last-to-first"}, {"output_loss": "candidate"}], ids=str)
@pytest.mark.parametrize("bits", ["W4A6", "MP4.5"])
def test_the_search_keeps_its_books_on_a_pyramid(bits, options):
    model = pyramid_model()
    graph = trace(model)
    spec, x, o = BitSpec.parse(bits), images(), SearchStage(**SMALL | options)
    working = Working(model, find_sites(graph, "full", spec), spec, o, x)
    search = Search(model, graph, working, spec, o, FakeContext(), x)
    search.run_pass(0)
    assert search.history[0]["output_after"] == pytest.approx(search._f.whole_loss(), abs=1e-5)


def positioned(build: Any, **options: Any) -> nn.Module:
    """A network with position biases made by small networks, its branches as large as its residual stream."""
    net = build(img_size=16, in_chans=1, num_classes=5, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "gamma" in name or ("norm" in name and "weight" in name):
                parameter.fill_(1.0)
    return net


RELPOS = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "rel_pos_dim": 8}
WINDOWS = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
POSITIONS = {
    "own": lambda: positioned(VisionTransformerRelPos, **RELPOS),
    "shared": lambda: positioned(VisionTransformerRelPos, shared_rel_pos=True, **RELPOS),
    "swinv2": lambda: positioned(SwinTransformerV2, **WINDOWS),
}


@pytest.mark.parametrize("form", POSITIONS)
def test_candidates_of_layers_that_see_no_image_equal_the_whole_forward_pass(form, monkeypatch):
    """The small networks that make position biases run once for all images, so their candidates run one by one."""
    monkeypatch.setitem(NETWORKS, form, POSITIONS[form])
    model, graph, working, x = working_tiny(form, "W4A8")
    fitness = Fitness(model, graph, working, SearchStage(output_loss="none"), x)
    blind = {op.weight for op in graph.ops if op.weight and not op.batched}
    genes, changed = [Gene(4, 1.0), Gene(4, 0.3), Gene(4, 0.4)], []
    with fitness.runner as runner:
        for segment in fitness.segments:
            runner.enter(segment)
            for site in segment.layers:
                runner.record(segment)
                values = fitness.values(segment, site, genes)
                expected = []
                for gene in genes:
                    working.set({site.parameter: gene})
                    expected.append(float(fitness.local(segment, runner.run(segment))))
                assert values == pytest.approx(expected, abs=1e-5)
                if site.parameter in blind:
                    changed.append(len(set(values)) > 1)
                working.set({site.parameter: genes[0]})
    # What a stem hands on to the blocks beside its output is not part of the fitness.
    assert changed
    assert not any(changed) if form == "shared" else any(changed)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_candidate_runs_only_its_layer_and_the_rest_of_its_block(name, monkeypatch):
    _, graph, working, x = working_tiny(name)
    blocks = find_blocks(graph)
    segments = [s for s in cut(graph, blocks, working.quantized.sites.weights) if s.is_block]
    computed: list[str] = []
    import methods.core.graph.intercept as module

    original = module.Interceptor._apply
    monkeypatch.setattr(
        module.Interceptor,
        "_apply",
        lambda self, key, slot, t: (computed.append(str(key)), original(self, key, slot, t))[1],
    )
    with SegmentRunner(working.quantized, graph, blocks, ImageSet.whole(x)) as runner:
        segment = segments[1]
        runner.enter(segment)
        runner.record(segment)
        last = segment.layers[-1]  # fc2
        computed.clear()
        runner.candidates(segment, last, working.weights(last.parameter, [Gene(4, 0.9)]))
    path = blocks[1].path
    assert set(computed) == {str(last.op), f"{path}/add.1"}


@pytest.mark.parametrize("name", NETWORKS)
def test_float_outputs_are_the_networks_own(name):
    model, graph, _, x = working_tiny(name)
    blocks = find_blocks(graph)
    inputs, outputs, final = float_outputs(model.net, blocks, x)
    assert torch.equal(final, model.net(x))
    first = model.net.get_submodule(blocks[0].path)
    assert torch.equal(first(inputs[0]), outputs[0])
    assert len(inputs) == len(outputs) == len(blocks)


def searched(name: str, bits: str, **options):
    model, graph, working, x = working_tiny(name, bits, **SMALL | options)
    ctx = FakeContext()
    search = Search(model, graph, working, BitSpec.parse(bits), SearchStage(**SMALL | options), ctx, x)
    search.run_pass(0)
    return model, working, search, ctx


@pytest.mark.parametrize(
    "options",
    [
        *({"output_loss": choice} for choice in ("accept", "candidate", "none")),
        {"order": "last-to-first"},
        {"local_loss": "infonce"},
        {"local_loss": "mse"},
        {"pooling": "channels", "output_distance": "l1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_search_lowers_fitness_and_leaves_weights_of_its_genes(name, options):
    model, working, search, _ = searched(name, "W3A6", **options)
    entry = search.history[0]
    assert entry["fitness_after"] <= entry["fitness_before"]
    if options.get("output_loss", SMALL["output_loss"]) == "accept":
        # Each layer accepts what gains more by itself than the whole loses; of the fitness the history has the mean.
        gained = len(working.genes) * (entry["fitness_before"] - entry["fitness_after"])
        assert entry["output_after"] - entry["output_before"] <= gained + 1e-6
    assert search.history[0]["output_after"] == pytest.approx(search._f.whole_loss(), abs=1e-5)
    parameters = dict(working.quantized.net.named_parameters())
    originals = dict(model.net.named_parameters())
    changed = 0
    for key, gene in working.genes.items():
        base = weight_quantizer(originals[key], gene.bits, symmetric=False)
        assert torch.equal(parameters[key], base.scaled(gene.multiplier)(originals[key]))
        changed += gene.multiplier != 1.0
    assert changed > 0
    assert search.evaluated >= 4 * len(originals) / 3


@pytest.mark.parametrize(
    "options",
    [
        {"local_loss": "infonce"},
        {"local_loss": "relational"},
        {"local_loss": "infonce", "output_loss": "none"},
    ],
    ids=str,
)
def test_one_image_ranks_no_candidates(options):
    model, graph, working, x = working_tiny("vit", **SMALL | options)
    stage = SearchStage(**SMALL | options)
    with pytest.raises(ValueError, match="one image has no other to contrast with"):
        Search(model, graph, working, BitSpec.parse("W4A6"), stage, FakeContext(), x[:1])
    for other in ({"local_loss": "mse"}, {"output_loss": "candidate"}):
        Search(model, graph, working, BitSpec.parse("W4A6"), SearchStage(**SMALL | other), FakeContext(), x[:1])


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_one_image_is_not_measured_from_its_own_mean(loss):
    """The cosine with a vector of zeros is the same of all candidates."""
    changes = {"local_loss": loss, "centred": True, "output_loss": "accept"}
    model, graph, working, x = working_tiny("vit", **SMALL | changes)
    stage, spec = SearchStage(**SMALL | changes), BitSpec.parse("W4A6")
    with pytest.raises(ValueError, match="one image is its own mean"):
        Search(model, graph, working, spec, stage, FakeContext(), x[:1])
    Search(model, graph, working, spec, stage, FakeContext(), x[:2])


def test_contrast_needs_a_patch_with_neighbours(monkeypatch):
    model = tiny_model("vit")
    graph = trace(model)
    stage = Stage1(model, graph, ClampOptions(images=2, rounds=1, steps=1), FakeContext())
    monkeypatch.setattr("methods.sources.clamp.source.to_grid", lambda tokens, grid: tokens[:, None, -1:])
    with pytest.raises(ValueError, match="no block of the network has a patch with neighbours"):
        stage.first_images(graph, "full", BitSpec(4, 8))


@pytest.mark.fast(options={"output_loss": "accept"})
@pytest.mark.parametrize(
    "options",
    [*({"output_loss": choice} for choice in ("accept", "candidate", "none")), {"order": "last-to-first"}],
    ids=str,
)
@pytest.mark.usual(name="vit")
@pytest.mark.usual(options={"output_loss": "accept"})
@pytest.mark.parametrize("name", NETWORKS)
def test_mixed_precision_stays_within_its_budget_and_uses_it(name, options):
    _, working, search, ctx = searched(name, "MP4.5", **options, population=9)
    summary = working.quantized.summary
    sizes, bits = [layer.size for layer in summary.layers], [layer.bits for layer in summary.layers]
    mean = sum(s * b for s, b in zip(sizes, bits, strict=True)) / sum(sizes)
    assert 3.0 < mean <= 4.5
    assert len(set(bits)) > 1
    assert {layer.name: layer.bits for layer in summary.layers} == working.bits
    # Activations: the width of the widest weight that they feed, or else of the last before them, plus 2.
    for site in working.quantized.sites.activations:
        assert site.bits == min(8, max(working.bits[n] for n in site.layers) + 2)
    assert 2.0 <= sum(summary.activation_bits.values()) / len(summary.activation_bits) <= 8.0
    assert search.history[0]["output_after"] == pytest.approx(search._f.whole_loss(), abs=1e-5)
    assert set(ctx.found["sensitivity"]["layers"]) == set(working.bits)
    parameters = dict(working.quantized.net.named_parameters())
    for layer in summary.layers:
        assert all(len(channel.unique()) <= 2**layer.bits for channel in parameters[layer.name].flatten(1))


@pytest.mark.parametrize(("when", "times"), [("pass", 2), ("start", 1)])
def test_sensitivity_is_measured_anew_or_once_and_changes_of_widths_are_judged_either_way(when, times, monkeypatch):
    measured = []
    original = Search._measure_widths

    def counted(self, segment, site, loss):
        measured.append(site.parameter)
        return original(self, segment, site, loss)

    monkeypatch.setattr(Search, "_measure_widths", counted)
    _, working, search, _ = searched("vit", "MP4.5", output_loss="accept", population=9, sensitivity=when)
    assert len(search.history) == 1
    assert sorted(measured) == sorted([*working.bits] * times)
    assert search._budget.fits(working.bits)
    assert search.history[0]["output_after"] == pytest.approx(search._f.whole_loss(), abs=1e-5)


@pytest.mark.fast(order="last-to-first")
@pytest.mark.parametrize("order", ["first-to-last", "last-to-first"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_change_of_widths_is_judged_by_losses_of_the_model_as_it_is(name, order, monkeypatch):
    """Caches of segments that were run before another layer changed must not count."""
    model, graph, working, x = working_tiny(name, "MP4", **SMALL)
    stage = SearchStage(**SMALL | {"population": 9}, order=order)
    search = Search(model, graph, working, BitSpec.parse("MP4"), stage, FakeContext(), x)
    fitness, judged = search._f, []
    original = fitness.locals

    def afresh(segments):
        found = original(segments)
        fitness.runner.restart()
        judged.append((found, original(segments)))
        return found

    monkeypatch.setattr(fitness, "locals", afresh)
    search.run_pass(0)
    assert len(judged) >= 2
    for found, expected in judged:
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_budget_that_no_width_meets_is_an_error():
    with pytest.raises(BudgetError, match="cannot be met"):
        searched("vit", "MP3", widths=(4, 8))


def test_all_activations_have_the_asked_width_if_one_is_asked():
    _, working, _, _ = searched("vit", "MP4A7")
    assert {site.bits for site in working.quantized.sites.activations} == {7}


SIZES = {"a": 100, "b": 10, "c": 50}


@given(
    costs=st.fixed_dictionaries(
        {name: st.fixed_dictionaries({b: st.floats(0, 10) for b in range(2, 9)}) for name in SIZES}
    ),
    mean=st.floats(2, 8),
    start=st.fixed_dictionaries({name: st.integers(2, 8) for name in SIZES}),
    keep=st.sampled_from([None, *SIZES]),
)
def test_repair_meets_the_budget_and_leaves_the_kept_layer(costs, mean, start, keep):
    budget = Budget(SIZES, mean)
    widths = budget.repair(start, costs, keep)
    if widths is None:
        assert keep is not None
        assert not budget.fits({name: start[name] if name == keep else 2 for name in SIZES})
        return
    assert budget.fits(widths)
    assert keep is None or widths[keep] == start[keep]
    # Nothing that still fits would gain (more than rounds to nothing per bit).
    for name in SIZES:
        for b in range(widths[name] + 1, 9):
            if name != keep and budget.fits({**widths, name: b}):
                assert costs[name][b] >= costs[name][widths[name]] - 1e-300


@pytest.mark.parametrize("mean", [4.1, 4.7, 4.1234567, 2.3, 5.0000001])
def test_k2_a_budget_is_exactly_what_was_asked(mean):
    """FAULTS K2 "`MP4.1234567`": never above what was asked, and all of it where whole bits meet it."""
    sizes = {"a": 7 * 10**7, "b": 3 * 10**7}
    asked = Fraction(str(mean)) * 10**8
    assert asked.denominator == 1
    assert Budget(sizes, mean).most == asked
    fitting = int(asked) // 8
    assert Budget({"wide": fitting, "narrow": 10**8 - fitting}, mean).fits({"wide": 8, "narrow": 0})
    assert not Budget({"wide": fitting + 1, "narrow": 10**8 - fitting - 1}, mean).fits({"wide": 8, "narrow": 0})


@pytest.mark.fast(cycles=2)
@pytest.mark.parametrize(("cycles", "per_pass"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1)])
def test_a_refresh_comes_after_half_of_a_layers_cycles(cycles, per_pass):
    """Of three cycles after the second; after every one it was, which is twice as often as half."""
    options = {"images": 4, "steps": 1, "rounds": 1, "population": 2, "passes": 1, "refresh_steps": 1}
    method, ctx = Clamp(ClampOptions(**options, cycles=cycles, refresh="cycles")), FakeContext()
    quantized = method.quantize(tiny_model("vit"), spec=BitSpec(4, 6), scheme="full", calib=None, ctx=ctx)
    assert ctx.stages.count("refresh") == per_pass * len(quantized.summary.layers)


@pytest.mark.slow
def test_refresh_cadences():
    counts, found = {}, {}
    for refresh in ("pass", "cycles", "never"):
        options = {"images": 4, "steps": 1, "rounds": 1, "population": 3, "passes": 2, "cycles": 2, "refresh_steps": 1}
        ctx = FakeContext()
        model = tiny_model("vit")
        method = Clamp(ClampOptions(**options, refresh=refresh))
        quantized = method.quantize(model, spec=BitSpec(4, 6), scheme="full", calib=None, ctx=ctx)
        counts[refresh] = ctx.stages.count("refresh")
        assert torch.isfinite(quantized(images())).all()
        found[refresh] = ctx.found["search"]["refreshes"], ctx.kept
    assert [at for at, _ in found.values()] == [[2], [1, 2, 3, 4], []]
    assert not torch.equal(found["pass"][1], found["never"][1])
    assert not torch.equal(found["pass"][1], found["cycles"][1])
    layers = len(quantized.summary.layers)
    assert counts == {"pass": 1, "cycles": 2 * 2 * layers, "never": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"contrast": "log-of-sums"},
        {"colocated": True},
        {"gradient": "quantized"},
        {"gradient": "both"},
        {"tap": "block"},
        {"neighbourhood": 5, "positives": 12},
        {"output_target": "l1"},
        {"tv_weight": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_synthesis_option_changes_the_images(name, options):
    model = tiny_model(name)

    def make(**extra):
        source = ClampImages(SynthesisStage(images=4, steps=3, rounds=1, **extra))
        return source.images(model, spec=BitSpec(4, 6), scheme="full", calib=None, ctx=FakeContext())

    found = make(**options)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, make())


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match="odd"):
        METHOD.resolve("quick", {"neighbourhood": 4})
    with pytest.raises(UsageError, match="negative is left"):
        METHOD.resolve("quick", {"positives": 8})
    with pytest.raises(UsageError, match="widths"):
        METHOD.resolve("quick", {"widths": [4, 3]})


def test_softmax_outputs_get_sites_where_the_scheme_has_none():
    graph = trace(tiny_model("vit"))
    plain, more = (find_sites(graph, "full", BitSpec(4, 6), softmax_bits=b) for b in (None, 8))
    added = set(more.activations) - set(plain.activations)
    assert {site.op.kind for site in added} == {"softmax"}
    assert {site.bits for site in added} == {8}
    same = [find_sites(graph, "matmul", BitSpec(4, 6), softmax_bits=b) for b in (None, 8)]
    assert same[0] == same[1]
    for method in (Clamp(ClampOptions(softmax_bits=8)), ClampSearch(SearchStage(softmax_bits=8))):
        reasons = [method.skip(tiny_model("vit"), spec=BitSpec(4, 6), scheme=s) for s in ("full", "matmul")]
        assert reasons[0] is None
        assert "scheme full" in reasons[1]


def test_the_search_takes_crossed_images():
    model = tiny_model("swin")
    method = ClampSearch(SearchStage(**SMALL))
    quantized = method.calibrate(model, images(), spec=BitSpec(4, 6), scheme="full", ctx=FakeContext())
    assert torch.isfinite(quantized(images())).all()
