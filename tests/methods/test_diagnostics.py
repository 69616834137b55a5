"""Patch similarity of finished images, against the plain formulas."""

from __future__ import annotations

import math

import pytest
import tiny_networks as tiny
import torch
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.diagnostics import ALL, BANDWIDTH, BINS, patch_similarity, site_effects
from methods.core.graph.intercept import Interceptor, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks, patch_grid, to_grid
from methods.core.graph.trace import trace
from methods.core.numerics.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.synthesis.similarity import density


def features(model, images):
    """Unit vectors (n, h, w, d) of each block, as the module under test must see them."""
    graph = trace(model)
    points = [block.branch for block in find_blocks(graph)]
    found = tap(model.net, images, points)[1]
    return [functional.normalize(to_grid(found[point], patch_grid(graph)), dim=-1) for point in points]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_density_and_entropy_are_those_of_all_pairs(name):
    model, images = tiny.tiny_model(name), tiny.images(3)
    result = patch_similarity(model, images)
    blocks = features(model, images)
    assert len(result.blocks) == len(blocks) == len(result.densities)
    torch.testing.assert_close(result.densities.sum(1) * 2 / BINS, torch.ones(len(blocks), dtype=torch.float64))
    for i, block in enumerate(blocks):
        flat = block.flatten(1, 2)
        pairs = flat @ flat.transpose(1, 2)
        different = pairs[:, ~torch.eye(flat.shape[1], dtype=torch.bool)]
        expected = torch.histc(different.clamp(-1, 1), BINS, min=-1, max=1) / different.numel() * BINS / 2
        # A similarity at the very edge of a bin may fall on either side.
        assert float((result.densities[i] - expected).abs().sum()) * 2 / BINS < 0.01
        grid = torch.linspace(-1.06, 1.06, 2121)
        psaq = torch.special.entr(density(pairs.flatten(1).clamp(-1, 1), grid, BANDWIDTH))
        assert float(result.entropies[i]) == pytest.approx(float(torch.trapezoid(psaq, grid).mean()), abs=0.01)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_neighbours_and_maps_are_the_plain_means(name):
    model, images = tiny.tiny_model(name), tiny.images(2)
    result = patch_similarity(model, images)
    blocks = features(model, images)
    for i, block in enumerate(blocks):
        h, w = block.shape[1:3]
        near, others = [], []
        for image in block:
            places = [(r, c) for r in range(h) for c in range(w)]
            for a in places:
                for b in places:
                    if a != b:
                        value = float(image[a] @ image[b])
                        others.append(value)
                        if max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1:
                            near.append(value)
        expected = sum(near) / len(near) - sum(others) / len(others)
        assert float(result.neighbours[i]) == pytest.approx(expected, abs=1e-5)
    last = blocks[-1]
    row, column = result.centre
    assert (row, column) == (last.shape[1] // 2, last.shape[2] // 2)
    assert result.maps.shape == last.shape[:3]
    torch.testing.assert_close(result.maps[:, row, column], torch.ones(2))
    assert float(result.maps[1, 0, 0]) == pytest.approx(float(last[1, 0, 0] @ last[1, row, column]), abs=1e-6)


def test_equal_patches_are_similar_and_the_network_is_left_alone():
    model = tiny.tiny_model("swin")
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    flat = patch_similarity(model, torch.zeros(2, *tiny.SHAPE))
    noise = patch_similarity(model, tiny.images(2))
    assert flat.density[-1] > noise.density[-1]
    gaussian = 0.5 * math.log(2 * math.pi * math.e * BANDWIDTH**2)  # one similarity only: the kernel alone
    torch.testing.assert_close(flat.entropies, torch.full_like(flat.entropies, gaussian), atol=1e-3, rtol=0)
    assert float(noise.entropies.mean()) > gaussian + 0.1
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.net.modules())


def test_synthesis_shows_its_steps():
    from methods.core.synthesis.descent import optimise_images
    from methods.core.synthesis.options import SynthesisOptions

    model, start = tiny.tiny_model("vit"), tiny.images(5)

    def run(name):
        ctx = tiny.FakeContext()
        generator = ctx.generator("x")
        options = SynthesisOptions()
        final = optimise_images(
            model,
            start,
            lambda x: x.square().mean(),
            options,
            name=name,
            lr=0.1,
            rounds=2,
            steps=16,
            generator=generator,
            ctx=ctx,
        )
        return ctx, final

    ctx, final = run("synthesize")
    assert sorted(ctx.snapshots) == [0, 2, 4, 8, 16, 32]
    torch.testing.assert_close(ctx.snapshots[0], start)
    torch.testing.assert_close(ctx.snapshots[32], final)
    assert run("refresh-0")[0].snapshots == {}


@pytest.mark.parametrize("name", tiny.NETWORKS)
def test_a_site_alone_is_what_its_recorded_range_says(name):
    """Against the quantizer of the record itself, put at that one place by hand."""
    model = tiny.tiny_model(name)
    sites = find_sites(trace(model), "full", BitSpec(8, 3))
    x = tiny.images()
    quantizers = activation_quantizers(sites, observe(model, x, sites, MinMax, 4))
    quantized = Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=True), quantizers)
    summary = quantized.summary
    dropped = str(sites.activations[3])
    ranges = {**summary.activation_ranges, dropped: (0.0, math.inf)}
    found = {e.site: e for e in site_effects(model, x, "full", summary.activation_bits, ranges)}
    assert list(found) == [ALL, *(str(s) for s in sites.activations if str(s) != dropped)]
    wanted = model.net(x)
    for site in (sites.activations[0], sites.activations[-5]):
        with Interceptor(model.net, {site.point: quantizers[site.point]}):
            output = model.net(x)
        assert found[str(site)].distance == pytest.approx(float(model.output_distance(output, wanted)), abs=1e-5)
        assert found[str(site)].changed == pytest.approx(float((output.argmax(1) != wanted.argmax(1)).float().mean()))
    with Interceptor(model.net, {point: q for point, q in quantizers.items() if point != sites.activations[3].point}):
        assert found[ALL].distance == pytest.approx(float(model.output_distance(model.net(x), wanted)), abs=1e-4)
