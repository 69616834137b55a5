"""CLAMP-ViT's losses, segment replay and search."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import NETWORKS, SHAPE, FakeContext, images, tiny_model

from harness.spec import BitSpec
from methods.clamp.contrast import output_contrast, patch_contrast
from methods.clamp.info import METHOD
from methods.clamp.search import Search
from methods.clamp.segments import SegmentRunner, cut, float_outputs
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.sites import find_sites
from methods.core.structure import find_blocks
from methods.core.trace import trace


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


def quantized_tiny(name: str, bits: str = "W4A6", scheme: str = "full"):
    model = tiny_model(name)
    graph = trace(model.net, SHAPE)
    sites = find_sites(graph, scheme, BitSpec.parse(bits))
    x = images()
    activations = activation_quantizers(sites, observe(model, x, sites, MinMax, 4))
    quantized = Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=False), activations)
    return model, graph, quantized, x


@pytest.mark.parametrize("name", NETWORKS)
def test_segments_hold_every_layer_once_and_in_order(name):
    _, graph, quantized, _ = quantized_tiny(name)
    segments = cut(graph, find_blocks(graph), quantized.sites.weights)
    found = [layer.parameter for segment in segments for layer in segment.layers]
    assert found == [site.parameter for site in quantized.sites.weights]


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_candidate_from_caches_equals_the_whole_forward_pass(name, scheme):
    """For every layer: change its weight, evaluate from caches, and compare with running the model from the image."""
    _model, graph, quantized, x = quantized_tiny(name, "W4A8", scheme)
    blocks = find_blocks(graph)
    segments = cut(graph, blocks, quantized.sites.weights)
    changed: list[bool] = []
    with SegmentRunner(quantized, blocks, x) as runner:
        for segment in segments:
            runner.enter(segment)
            runner.record(segment)
            for site in segment.layers:
                base = quantized.weights[site.parameter]
                quantized.set_weight(site.parameter, base.scaled(0.8))
                fast = runner.candidate(segment, site)
                logits = runner.logits(segment, fast)
                assert torch.equal(logits, quantized.net(x))
                quantized.set_weight(site.parameter, base)
                changed.append(not torch.equal(runner.candidate(segment, site), fast))
    # Coarse activations may swallow a change here and there, but not often.
    assert sum(changed) > 0.5 * len(changed)
    assert torch.equal(quantized(x), quantized(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_candidate_runs_only_its_layer_and_the_rest_of_its_block(name, monkeypatch):
    _, graph, quantized, x = quantized_tiny(name)
    blocks = find_blocks(graph)
    segments = [s for s in cut(graph, blocks, quantized.sites.weights) if s.is_block]
    computed: list[str] = []
    import methods.core.intercept as module

    original = module.Interceptor._apply
    monkeypatch.setattr(
        module.Interceptor,
        "_apply",
        lambda self, key, slot, t: (computed.append(str(key)), original(self, key, slot, t))[1],
    )
    with SegmentRunner(quantized, blocks, x) as runner:
        segment = segments[1]
        runner.enter(segment)
        runner.record(segment)
        last = segment.layers[-1]  # fc2
        computed.clear()
        runner.candidate(segment, last)
    path = blocks[1].path
    assert set(computed) == {str(last.op), f"{path}/add.1"}


@pytest.mark.parametrize("name", NETWORKS)
def test_float_outputs_are_the_networks_own(name):
    model, graph, _, x = quantized_tiny(name)
    blocks = find_blocks(graph)
    inputs, outputs, final = float_outputs(model.net, blocks, x)
    assert torch.equal(final, model.net(x))
    first = model.net.get_submodule(blocks[0].path)
    assert torch.equal(first(inputs[0]), outputs[0])
    assert len(inputs) == len(outputs) == len(blocks)


@pytest.mark.parametrize("output_loss", ["accept", "candidate", "none"])
def test_search_lowers_fitness_and_leaves_weights_of_its_genes(output_loss):
    model, graph, quantized, x = quantized_tiny("vit", "W3A6")
    options = METHOD.resolve("quick", {"population": 4, "cycles": 2, "passes": 1, "output_loss": output_loss})
    bases = dict(quantized.weights)
    search = Search(model, graph, quantized, options, FakeContext())
    search.run_pass(x, 0)
    entry = search.history[0]
    assert entry["fitness_after"] <= entry["fitness_before"]
    if output_loss == "accept":
        assert entry["fitness_after"] + entry["output_after"] <= entry["fitness_before"] + entry["output_before"] + 1e-6
    parameters = dict(quantized.net.named_parameters())
    originals = dict(model.net.named_parameters())
    changed = 0
    for name, gene in search.multipliers().items():
        assert torch.equal(parameters[name], bases[name].scaled(gene)(originals[name]))
        changed += gene != 1.0
    assert changed > 0
    assert search.evaluated >= 4 * len(bases)
