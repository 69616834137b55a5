"""MaskAQ's terms against straightforward formulas, and options that every synthesizing source has."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, tiny_model
from torch.nn import functional

from harness.api.errors import UsageError
from harness.api.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.attention import find_attention
from methods.core.graph.intercept import tap
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.synthesis.filters import low_pass
from methods.core.synthesis.targets import absolute_error
from methods.sources.clamp.info import INFO as CLAMP
from methods.sources.fdd.info import INFO as FDD
from methods.sources.maskaq.info import INFO as MASKAQ
from methods.sources.maskaq.terms import attention_entropies, attention_mask, masked_difference
from methods.sources.mimiq.info import INFO as MIMIQ
from methods.sources.psaq.info import INFO as PSAQ
from methods.sources.sardfq.info import INFO as SARDFQ

SPEC = BitSpec(4, 4)
STILL = {"jitter": 0, "noise": 0.0, "colour": 0.0}
ALONE = {"class_weight": 0.0, "tv_weight": 0.0, "similarity_weight": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(info, model, **options):
    ctx = FakeContext()
    source = info.load()(info.resolve("quick", {"images": 3, "rounds": 1, "steps": 1, **options}))
    return source.images(model, spec=SPEC, scheme="full", calib=None, ctx=ctx), ctx


def first_loss(info, model, **options) -> float:
    return made(info, model, **options)[1].found["synthesize_loss"]["values"][0]


def test_entropy_is_that_of_a_normal_distribution_of_cosines():
    maps = torch.randn(2, 3, 5, 5, generator=seeded())
    for image, found in zip(maps.double(), attention_entropies(maps.double(), 64, seeded()), strict=True):
        rows = image.mean(0)
        cosines = torch.stack([functional.cosine_similarity(a, b, dim=0) for a in rows for b in rows])
        spread = ((cosines - cosines.mean()) ** 2).mean() + 1e-8
        assert float(found) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * float(spread)), rel=1e-6)
    # Of many patches as many rows as are asked for, others in each draw.
    few = [float(attention_entropies(maps[:1], 3, seeded(seed))) for seed in range(6)]
    assert len(set(few)) > 1


def test_mask_has_what_is_looked_at_most_but_what_is_dropped():
    attention = torch.rand(6, 20, generator=seeded())
    most = attention_mask(attention, 0.5, 0.0, seeded())
    for row, mask in zip(attention, most, strict=True):
        assert set(mask.nonzero().flatten().tolist()) == set(row.topk(10).indices.tolist())
    dropped = attention_mask(attention, 0.5, 0.3, seeded())
    assert dropped.sum(1).tolist() == [7.0] * 6
    assert (dropped <= most).all()
    assert attention_mask(attention, 0.01, 0.9, seeded()).sum(1).tolist() == [1.0] * 6


@pytest.mark.parametrize("network", NETWORKS)
def test_alignment_is_the_masked_difference_of_both_models_products(network):
    model = tiny_model(network)
    options = {**ALONE, **STILL, "entropy_weight": 0.0, "align_weight": 1.0, "mask_drop": 0.0}
    windows = network == "swin"
    found = first_loss(MASKAQ, model, **options, align_windows=windows)
    noise = torch.randn(3, *model.input_shape, generator=FakeContext().generator("calibration-images"))
    graph = trace(model)
    sites = find_sites(graph, "full", SPEC)
    ranges = activation_quantizers(sites, observe(model, noise, sites, MinMax, 3))
    quantized = Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=True), None)
    layers = find_attention(graph)
    points = [layer.products for layer in layers]
    _, float_maps = tap(model.net, noise, points)
    rounded = {}
    for point in points:  # products are sites of scheme full: what the quantized model goes on with
        ranges[point] = _keeping(ranges[point], rounded, point)
    quantized.set_activations(ranges)
    quantized(noise)

    def row(maps, layer):
        heads = maps.mean(1)
        return heads.mean(1) if windows else heads[:, 0, layer.prefix :]

    total = 0.0
    for layer in layers:
        alike = [a for a in layers if (a.windows, a.grid) == (layer.windows, layer.grid)]
        looks = sum(row(float_maps[a.products], a) for a in alike) / len(alike)
        mask = attention_mask(looks, 0.5, 0.0, seeded())
        ours, theirs = row(float_maps[layer.products], layer), row(rounded[layer.products], layer)
        total += float(masked_difference(ours, theirs, mask)) / len(layers)
    assert found == pytest.approx(total, rel=1e-3, abs=2e-5)
    assert total > 1e-3
    if windows:  # as the released code, whose windowed term is never added
        assert first_loss(MASKAQ, model, **options) == pytest.approx(0.0, abs=1e-6)


def _keeping(quantizer, kept, point):
    def keep(x):
        kept[point] = quantizer(x)
        return kept[point]

    return keep


def test_every_ablation_changes_the_images():
    """All but the one of windows on a network without any, which a Swin has."""
    model, swin = tiny_model("vit"), tiny_model("swin")
    usual, usual_swin = (made(MASKAQ, each, steps=3)[0] for each in (model, swin))
    for label, changes in MASKAQ.ablations.items():
        windows = "align_windows" in changes
        images = made(MASKAQ, swin if windows else model, steps=3, **changes)[0]
        assert not torch.equal(images, usual_swin if windows else usual), label


def test_low_pass_is_synqs_filter():
    images = torch.rand(2, 3, 12, 16, generator=seeded())
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.double()), dim=(2, 3))
    down, right = torch.meshgrid(torch.arange(12) - 6, torch.arange(16) - 8, indexing="ij")
    weight = torch.exp(-(down.double() ** 2 + right**2) / (2 * 3.0**2))
    wanted = torch.fft.ifft2(torch.fft.ifftshift(spectrum * weight, dim=(2, 3))).real
    assert torch.allclose(low_pass(images, 3.0), wanted.float(), atol=1e-6)
    assert torch.allclose(low_pass(images, 1e4), images, atol=1e-5)


@pytest.mark.parametrize("info", [PSAQ, CLAMP, SARDFQ, FDD, MIMIQ, MASKAQ], ids=lambda info: info.name)
def test_every_source_filters_what_it_hands_on_and_keeps_its_key(info):
    model = tiny_model("vit")
    plain, _ = made(info, model)
    assert torch.allclose(made(info, model, low_pass=2.0)[0], low_pass(plain, 2.0), atol=1e-6)
    assert "low_pass" not in info.resolve("default", {}).identified()
    assert info.resolve("default", {"low_pass": 2.0}).identified()["low_pass"] == 2.0


@pytest.mark.parametrize("info", [PSAQ, CLAMP], ids=lambda info: info.name)
def test_output_error_is_that_of_probabilities(info):
    model = tiny_model("vit")
    weight = "class_weight" if info is PSAQ else "output_weight"
    with_error, without = (
        first_loss(info, model, jitter=0, output_target="mae", tv_weight=0.0, **{weight: w}) for w in (1.0, 0.0)
    )
    ctx = FakeContext()
    noise = torch.randn(3, *model.input_shape, generator=ctx.generator("calibration-images"))
    targets = model.sample_targets(3, ctx.generator("pseudo-labels"))
    candidates = []
    for batch in (noise, noise.flip(3)):  # the first step may mirror
        p = model.net(batch).softmax(1)
        right = p.gather(1, targets[:, None])[:, 0]
        candidates.append(float((2 * (1 - right)).mean() / p.shape[1]))
    assert any(with_error - without == pytest.approx(each, abs=3e-5) for each in candidates)


def test_output_error_of_maps_and_its_refusal():
    logits, wanted = torch.randn(2, 3, 4, 4, generator=seeded()), torch.zeros(2, 4, 4, dtype=torch.long)
    expected = (logits.softmax(1) - torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)).abs().mean()
    assert float(absolute_error(logits, wanted)) == pytest.approx(float(expected))
    for output, targets in ((logits, wanted[:1]), ([logits], wanted), (logits, wanted.float())):
        with pytest.raises(UsageError, match="write output_target=class"):
            absolute_error(output, targets)
