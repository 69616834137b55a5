"""The search that CLAMP-ViT's figure draws: candidates are whole networks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_clamp import cosine, pyramid_model
from tiny_networks import NETWORKS, FakeContext, images, tiny_model

from harness.api.errors import UsageError
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import INFO, SearchStage
from methods.calibrators.clamp_search.network import NetworkSearch
from methods.calibrators.clamp_search.network_fitness import NetworkFitness
from methods.calibrators.clamp_search.vectors import Vector, VectorEvolution, difference
from methods.calibrators.clamp_search.working import Working
from methods.core.budget import BudgetError
from methods.core.contrast import output_contrast
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.segment_runner import float_outputs

# --- the forms of the layer-output loss ------------------------------------------------------------------------------


def pooled(seed: int, k: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs of k candidates and of the float model for four images, and their vectors."""
    g = torch.Generator().manual_seed(seed)
    q, f = torch.randn(4 * k, 6, 5, generator=g), torch.randn(4, 6, 5, generator=g)
    return q, f, q.mean(1), f.mean(1)


@pytest.mark.parametrize("negatives", ["other", "both"])
@pytest.mark.parametrize("anchors", ["quantized", "float", "both"])
def test_anchors_and_negatives_are_those_that_are_asked_for(anchors, negatives):
    q, f, u, v = pooled(0)
    ways = {"quantized": [(u, v)], "float": [(v, u)], "both": [(u, v), (v, u)]}[anchors]
    expected = 0.0
    for own, other in ways:
        for j in range(4):
            scores = [cosine(own[j], other[m]) / 0.3 for m in range(4)]
            every = scores + [cosine(own[j], own[m]) / 0.3 for m in range(4) if m != j and negatives == "both"]
            expected += (math.log(sum(map(math.exp, every))) - scores[j]) / 4 / len(ways)
    found = output_contrast(q, f, 0.3, anchors=anchors, negatives=negatives)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["infonce", "relational", "cosine", "mse"])
def test_centred_features_lose_what_all_images_have_in_common(form):
    q, f, u, v = pooled(1)
    mean = v.mean(0)
    plain = output_contrast((u - mean)[:, None], (v - mean)[:, None], 0.3, form=form)
    assert torch.allclose(output_contrast(q, f, 0.3, form=form, centred=True), plain, atol=1e-6)
    moved = output_contrast(q + 3.0, f + 3.0, 0.3, form=form, centred=True)
    assert torch.allclose(moved, plain, atol=1e-4)
    assert not torch.allclose(output_contrast(q + 3.0, f + 3.0, 0.3, form=form), plain, atol=1e-4)


@pytest.mark.parametrize("options", [{"anchors": "both", "negatives": "both"}, {"centred": True, "anchors": "float"}])
def test_candidates_are_compared_one_by_one(options):
    q, f, *_ = pooled(2, k=3)
    together = output_contrast(q, f, 0.3, **options)
    single = torch.cat([output_contrast(part, f, 0.3, **options) for part in q.chunk(3)])
    assert torch.allclose(together, single, atol=1e-6)


# --- fitness of one vector -------------------------------------------------------------------------------------------

MODELS = {"vit": lambda: tiny_model("vit"), "swin": lambda: tiny_model("swin"), "pyramid": pyramid_model}


class Scored:
    """A network fitness with its parts."""

    def __init__(self, name: str, bits: str, **options: Any) -> None:
        self.model, self.x = MODELS[name](), images()
        self.options = SearchStage(search="network", **options)
        graph, spec = trace(self.model), BitSpec.parse(bits)
        sites = find_sites(graph, "full", spec)
        self.working = Working(self.model, sites, spec, self.options, self.x)
        self.losses = Fitness(self.model, graph, self.working, self.options, self.x)
        blocks, whole = self.options.local_outputs == "blocks", self.options.output_loss != "none"
        self.fitness = NetworkFitness(self.losses, self.working, graph, blocks_alone=blocks, whole=whole)
        self.evolution = VectorEvolution(self.options, self.working.widths, torch.Generator().manual_seed(3))

    def vectors(self) -> list[Vector]:
        """The start, others that share its beginning, and some that share none."""
        start = tuple(self.working.genes[site.parameter] for site in self.fitness.layers)
        late = [(*start[:i], start[i]._replace(multiplier=0.8), *start[i + 1 :]) for i in range(len(start) - 1, 0, -4)]
        wild = self.evolution.children(self.evolution.start(start), 1)
        return [start, *late, *wild, start]

    def plain(self, vector: Vector) -> float:
        """L^F by one pass of the whole model."""
        o, f = self.options, self.losses
        self.working.set({site.parameter: gene for site, gene in zip(self.fitness.layers, vector, strict=True)})
        with torch.no_grad(), self.working.quantized.interceptor():
            inputs, outputs, final = float_outputs(self.working.quantized.net, f.blocks, self.x)
        total = float(self.model.output_distance(final, self.model.net(self.x))) if o.output_loss != "none" else 0.0
        for segment in f.segments:
            if segment.is_block:
                total += float(f.local(segment, outputs[segment.index]))
            elif o.local_outputs == "pieces":
                total += float(f.local(segment, [*inputs, final][segment.index]))
        return total


@pytest.mark.fast(bits=["W4A8", "MP4.5"], options={})
@pytest.mark.parametrize("options", [{}, {"local_outputs": "blocks"}, {"output_loss": "none"}], ids=str)
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "MP4.5"])
@pytest.mark.parametrize("name", MODELS)
def test_fitness_is_that_of_a_plain_forward_pass(name, bits, options):
    scored = Scored(name, bits, **options)
    vectors = scored.vectors()
    with scored.losses.runner:
        found = [score for half in (vectors[:4], vectors[4:]) for score in scored.fitness.scores(half)]
    assert [score.fitness for score in found] == pytest.approx([scored.plain(v) for v in vectors], rel=1e-4, abs=1e-5)
    assert len({score.fitness for score in found}) > len(found) / 2


@pytest.mark.parametrize("bits", ["W4A8", "MP4.5"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_known_beginning_changes_no_bit(name, bits):
    """One by one, from what earlier ones left behind and from the images."""
    scored = Scored(name, bits)
    vectors, afresh = scored.vectors(), []
    with scored.losses.runner:
        known = [scored.fitness.scores([vector])[0] for vector in vectors]
        for vector in vectors:
            scored.fitness.forget()
            afresh.append(scored.fitness.scores([vector])[0])
    assert known == afresh


def test_a_candidate_is_run_from_its_first_changed_block(monkeypatch):
    scored = Scored("vit", "W4A8")
    start = scored.vectors()[0]
    ran: list[str] = []
    import methods.core.graph.intercept as module

    original = module.Interceptor._apply
    monkeypatch.setattr(
        module.Interceptor,
        "_apply",
        lambda self, key, slot, t: (ran.append(key.module), original(self, key, slot, t))[1],
    )
    last = scored.losses.blocks[-1].path
    place = next(i for i, site in enumerate(scored.fitness.layers) if site.op.module.startswith(last))
    with scored.losses.runner:
        scored.fitness.scores([start])
        ran.clear()
        scored.fitness.scores([(*start[:place], Gene(4, 0.8), *start[place + 1 :])])
        blocks = {b.path for b in scored.losses.blocks if any(f"{m}.".startswith(f"{b.path}.") for m in ran)}
        assert blocks == {last}
        ran.clear()
        assert scored.fitness.scores([start, start])[0].fitness > 0
        assert not any(m.startswith("blocks.") for m in ran)


def test_what_is_kept_is_bounded(monkeypatch):
    scored = Scored("vit", "W4A8")
    vectors = scored.vectors()
    with scored.losses.runner:
        expected = scored.fitness.scores(vectors)
        one = next(iter(scored.fitness._known.values())).output.nbytes
        monkeypatch.setattr("methods.calibrators.clamp_search.network_fitness._HELD", 3 * one)
        scored.fitness.forget()
        found = [scored.fitness.scores([vector])[0] for vector in vectors]
        assert len(scored.fitness._known) <= 3
    assert [s.fitness for s in found] == pytest.approx([s.fitness for s in expected], abs=1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["vit", "pyramid"])
def test_a_layers_own_and_later_outputs_count(name, whole):
    """search=layer, local_scope=later: for genes of every layer, against one pass of the whole model."""
    model, x = MODELS[name](), images()
    graph, spec = trace(model), BitSpec.parse("W4A8")
    o = SearchStage(local_scope="later", output_loss="candidate" if whole else "none")
    working = Working(model, find_sites(graph, "full", spec), spec, o, x)
    fitness = Fitness(model, graph, working, o, x)
    genes = [Gene(4, 1.0), Gene(4, 0.8)]
    for segment in fitness.segments:
        for site in segment.layers[-1:]:
            with fitness.runner as runner:
                runner.enter(segment)
                base = fitness.contrast(segment, runner.record(segment))
                found = fitness.values(segment, site, genes)
            for gene, value in zip(genes, found, strict=True):
                working.set({site.parameter: gene})
                with torch.no_grad(), working.quantized.interceptor():
                    inputs, outputs, final = float_outputs(working.quantized.net, fitness.blocks, x)
                expected = sum(
                    float(fitness.local(s, fitness.passed(s, final, inputs, outputs)))
                    for s in fitness.segments[fitness.segments.index(segment) :]
                )
                if gene.multiplier == 1.0:
                    assert base == pytest.approx(expected, rel=1e-4, abs=1e-5)
                distance = fitness.distance(final) if whole else 0.0
                assert value == pytest.approx(expected + distance, rel=1e-4, abs=1e-5)
            working.set({site.parameter: genes[0]})
    with fitness.runner:
        last = fitness.segments[-2:]
        assert fitness.locals(last[:1]) == pytest.approx(fitness.locals(last), abs=1e-6)


def test_without_a_layer_loss_something_else_must_rank():
    with pytest.raises(UsageError, match="nothing to rank"):
        INFO.resolve("quick", {"local_weight": 0})
    INFO.resolve("quick", {"local_weight": 0, "search": "network"})
    INFO.resolve("paper", {"local_weight": 0})


# --- evolution -------------------------------------------------------------------------------------------------------

GENES = st.builds(Gene, st.integers(2, 8), st.floats(0.5, 1.5))


@st.composite
def pairs(draw: Any) -> tuple[Vector, Vector]:
    count = draw(st.integers(2, 9))
    vectors = st.tuples(*[GENES] * count)
    return draw(vectors), draw(vectors)


def evolution(mixed: bool, seed: int, **options: Any) -> VectorEvolution:
    widths = tuple(range(2, 9)) if mixed else (4,)
    return VectorEvolution(SearchStage(**options), widths, torch.Generator().manual_seed(seed))


@given(
    pair=pairs(),
    mixed=st.booleans(),
    exchange=st.sampled_from(["across", "aligned"]),
    exchanged=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_crossover_exchanges_cells_of_a_kind(pair, mixed, exchange, exchanged, seed):
    children = evolution(mixed, seed, exchange=exchange, exchanged=exchanged).crossover(*pair)
    for kind in ("bits", "multiplier"):
        before, after = ([[getattr(gene, kind) for gene in vector] for vector in both] for both in (pair, children))
        # No cell is lost, none is made, and none becomes one of the other kind.
        assert Counter(before[0] + before[1]) == Counter(after[0] + after[1])
        for parent, child in zip(before, after, strict=True):
            assert sum(a != b for a, b in zip(parent, child, strict=True)) <= exchanged
        if kind == "bits" and not mixed:
            assert before == after
        if exchange == "aligned":
            for place in range(len(pair[0])):
                assert {row[place] for row in before} == {row[place] for row in after}


@given(pair=pairs(), mixed=st.booleans(), mutated=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_mutation_replaces_cells_of_the_selected_layer_and_others(pair, mixed, mutated, seed, data):
    vector, selected = pair[0], data.draw(st.integers(0, len(pair[0]) - 1))
    child = evolution(mixed, seed, mutated=mutated, mutation=0.1).mutate(vector, selected)
    kinds = ("bits", "multiplier") if mixed else ("multiplier",)
    changed = [
        (i, kind)
        for i, (a, b) in enumerate(zip(vector, child, strict=True))
        for kind in ("bits", "multiplier")
        if getattr(a, kind) != getattr(b, kind)
    ]
    assert any(i == selected for i, _ in changed)
    assert {kind for _, kind in changed} <= set(kinds)
    assert len(changed) == min(mutated, len(kinds) * len(vector))
    for a, b in zip(vector, child, strict=True):
        assert abs(a.bits - b.bits) <= 1
        assert 2 <= b.bits <= 8
        assert abs(b.multiplier / a.multiplier - 1.0) <= 0.1 + 1e-12


@pytest.mark.parametrize("diversity", [True, False])
def test_children_of_a_cycle(diversity):
    start = tuple(Gene(4, 1.0) for _ in range(5))
    population = [start, tuple(Gene(4, 1.1) for _ in range(5)), tuple(Gene(4, 5.0) for _ in range(5))]
    children = evolution(False, 0, diversity=diversity, crossover=1.0, tournament=9).children(population, 2)
    assert len(children) == (4 if diversity else 2)
    for child in children[:2]:
        assert child[2] != Gene(4, 1.0)  # the selected layer
    if diversity:  # mixed with the one least like it
        assert max(population, key=lambda v: difference(children[0], v)) == population[2]
        assert sum(gene.multiplier == 5.0 for gene in children[2]) == 1
        assert sum(gene.multiplier == 5.0 for gene in children[3]) == 4


def test_the_first_population_spreads_around_its_start():
    start = tuple(Gene(4, 1.0) for _ in range(7))
    population = evolution(False, 0, population=9, spread=0.2, mutation=0.1).start(start)
    assert population[0] == start
    assert len(set(population)) == 9
    assert all(0.8 <= gene.multiplier <= 1.1 for vector in population for gene in vector)


# --- the search ------------------------------------------------------------------------------------------------------

SMALL = {"search": "network", "population": 4, "cycles": 2, "passes": 1}


def searched(name: str, bits: str, **options: Any) -> tuple[Working, NetworkSearch, FakeContext]:
    model, x, o, ctx = MODELS[name](), images(), SearchStage(**SMALL | options), FakeContext()
    graph, spec = trace(model), BitSpec.parse(bits)
    working = Working(model, find_sites(graph, "full", spec), spec, o, x)
    search = NetworkSearch(model, graph, working, spec, o, ctx, x)
    for number in range(o.passes):
        search.run_pass(number)
    return working, search, ctx


@pytest.mark.usual(options={"passes": 2})
@pytest.mark.usual(name="vit", bits=["W4A8", "MP4.5"])
@pytest.mark.fast(options={"passes": 2})
@pytest.mark.parametrize(
    "options", [{"passes": 2}, {"output_loss": "none"}, {"order": "last-to-first"}, {"exchange": "aligned"}], ids=str
)
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "MP4.5"])
@pytest.mark.parametrize("name", MODELS)
def test_the_search_lowers_the_fitness_of_what_it_leaves(name, bits, options):
    working, search, _ = searched(name, bits, **options)
    for entry in search.history:
        assert entry["fitness_after"] <= entry["fitness_before"]
    assert search.history[-1]["fitness_after"] < search.history[0]["fitness_before"]
    assert search.history[-1]["output_after"] == pytest.approx(search._losses.whole_loss(), abs=1e-5)
    assert len(search.cycles["fitness"]) == len(search.history) * 2
    bits_used = [layer.bits for layer in working.quantized.summary.layers]
    if bits == "MP4.5":
        sizes = [layer.size for layer in working.quantized.summary.layers]
        assert 3.0 < sum(s * b for s, b in zip(sizes, bits_used, strict=True)) / sum(sizes) <= 4.5
        assert len(set(bits_used)) > 1
    else:
        assert set(bits_used) == {int(bits[1])}
    assert any(gene.multiplier != 1.0 for gene in working.genes.values())


def test_equal_candidates_are_run_once(monkeypatch):
    seen: list[Vector] = []
    original = NetworkFitness.scores
    monkeypatch.setattr(
        NetworkFitness, "scores", lambda self, vectors: (seen.extend(vectors), original(self, vectors))[1]
    )
    _, search, _ = searched("vit", "W4A8", passes=2, mutation=1e-9, spread=0.0)
    assert len(seen) == len(set(seen)) == search.evaluated


def test_a_budget_that_no_vector_meets_is_an_error():
    with pytest.raises(BudgetError, match="cannot be met"):
        searched("vit", "MP3", widths=(4, 8))


def test_other_images_are_scored_anew():
    _, search, _ = searched("vit", "W4A8")
    before = dict(search._scores)
    search.renew(lambda x: x.flip(3) * 0.5)
    search.run_pass(1)
    assert search.refreshes == [2]
    assert all(score != search._scores.get(vector) for vector, score in before.items())


@pytest.mark.parametrize("options", [{"local_loss": "infonce"}, {"local_loss": "relational"}], ids=str)
def test_one_image_ranks_no_candidates(options):
    model, x, spec = tiny_model("vit"), images(1), BitSpec.parse("W4A6")
    graph = trace(model)
    for more, fails in (({"output_loss": "none"}, True), ({"output_loss": "accept"}, False)):
        o = SearchStage(**SMALL | options | more)
        working = Working(model, find_sites(graph, "full", spec), spec, o, x)
        if fails:
            with pytest.raises(ValueError, match="one image has no other to contrast with"):
                NetworkSearch(model, graph, working, spec, o, FakeContext(), x)
        else:
            NetworkSearch(model, graph, working, spec, o, FakeContext(), x)
