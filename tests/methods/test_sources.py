"""SARDFQ's, FDD's and MimiQ's loss terms against straightforward formulas, and the images that come of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.plugins import PRESETS
from harness.api.spec import BitSpec
from methods.core.graph.attention import between_patches, find_attention, patch_attention
from methods.core.graph.intercept import tap
from methods.core.graph.structure import find_blocks, fit_grid, to_grid
from methods.core.graph.trace import trace, trace_net
from methods.core.synthesis.descent import variation_loss
from methods.core.synthesis.heads import Disturbance, head_dissimilarity, head_variation
from methods.core.synthesis.similarity import entropy, patch_similarity
from methods.sources.fdd.info import INFO as FDD
from methods.sources.fdd.info import FddOptions
from methods.sources.fdd.source import phase
from methods.sources.fdd.spectrum import band_mask, filtered
from methods.sources.maskaq.info import INFO as MASKAQ
from methods.sources.mimiq.info import INFO as MIMIQ
from methods.sources.psaq.info import INFO as PSAQ
from methods.sources.sardfq.info import INFO as SARDFQ
from methods.sources.sardfq.labels import soft_labels
from methods.sources.sardfq.priors import block_weights, gaussian_mixtures, prior_distance
from methods.sources.sardfq.regions import Regions, random_regions
from tasks.models.attention import unfused

SMALL = {"images": 3, "rounds": 1, "steps": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def synthesize(info, model: VisionModel, seed: int = 0, ctx: FakeContext | None = None, **options) -> torch.Tensor:
    source = info.load()(info.resolve("quick", {**SMALL, **options}))
    context = ctx or FakeContext(seed)
    return source.images(model, spec=BitSpec(4, 8), scheme="full", calib=None, ctx=context)


def first_loss(info, model: VisionModel, **options) -> float:
    """The loss of the first step, which is that of the noise that images start from."""
    ctx = FakeContext()
    synthesize(info, model, ctx=ctx, **{"jitter": 0, "steps": 1, **options})
    return ctx.found["synthesize_loss"]["values"][0]


def start_of(model: VisionModel) -> tuple[torch.Tensor, torch.Tensor]:
    ctx = FakeContext()
    noise = torch.randn(SMALL["images"], *model.input_shape, generator=ctx.generator("calibration-images"))
    return noise, model.sample_targets(SMALL["images"], ctx.generator("pseudo-labels"))


# --- attention of a traced network ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_attention_is_found_in_the_data_flow(network):
    model = tiny_model(network)
    layers = find_attention(trace(model))
    points = [point for layer in layers for point in (layer.weights, layer.products)]
    _, found = tap(model.net, images(3), points)
    for layer in layers:
        weights = found[layer.weights]
        rows, columns = layer.grid
        tokens = layer.prefix + rows * columns
        assert weights.shape == found[layer.products].shape == (3 * layer.windows, layer.heads, tokens, tokens)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert patch_attention(weights, layer).shape == (3 * layer.windows, layer.heads, rows * columns)
    if network == "vit":
        assert [(layer.heads, layer.windows, layer.prefix, layer.grid) for layer in layers] == [(2, 1, 1, (4, 4))] * 2
        weights, products = found[layers[0].weights], found[layers[0].products]
        assert torch.allclose(products.softmax(-1), weights, atol=1e-6)
        assert torch.equal(patch_attention(weights, layers[0]), weights[:, :, 0, 1:])
    else:
        expected = [(1, 4, 0, (4, 4))] * 2 + [(2, 1, 0, (4, 4))] * 2
        assert [(layer.heads, layer.windows, layer.prefix, layer.grid) for layer in layers] == expected
        weights, products = found[layers[1].weights], found[layers[1].products]
        # The products come before the position bias and before the mask of shifted windows.
        assert not torch.allclose(products.softmax(-1), weights, atol=1e-3)
        assert products.abs().max() < 90
        assert torch.equal(patch_attention(weights, layers[1]), weights.mean(2))


@pytest.mark.parametrize(
    ("options", "prefix", "grid"),
    [
        ({"reg_tokens": 2}, 3, (4, 3)),
        ({"class_token": False, "global_pool": "avg"}, 0, (4, 3)),
    ],
)
def test_other_prefixes_and_rectangles(options, prefix, grid):
    net = VisionTransformer(
        img_size=(16, 12), patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, **options
    )
    (layer,) = find_attention(trace_net(unfused(net.eval()), (3, 16, 12)))
    assert (layer.prefix, layer.grid) == (prefix, grid)


def test_rectangular_windows():
    net = SwinTransformer(
        img_size=(16, 32), patch_size=4, window_size=(2, 4), embed_dim=8, depths=(2,), num_heads=(2,), num_classes=3
    )
    layers = find_attention(trace_net(unfused(net.eval()), (3, 16, 32)))
    assert [(layer.windows, layer.prefix, layer.grid) for layer in layers] == [(4, 0, (2, 4))] * 2


# --- SARDFQ ------------------------------------------------------------------------------------------------------


def test_a_prior_is_a_mixture_of_gaussians():
    """One Gaussian is a product of normal densities; more are a weighted sum of such."""
    single = gaussian_mixtures(40, (6, 9), 1, (0.1, 0.2), seeded())
    assert single.shape == (40, 54)
    assert torch.allclose(single.sum(1), torch.ones(40))
    assert (single >= 0).all()
    for values in single.reshape(40, 6, 9):
        rank_one = values.sum(1, keepdim=True) * values.sum(0)
        assert torch.allclose(values, rank_one, atol=1e-6)
        # The logarithm of a Gaussian has constant second differences, - (cell / deviation)^2.
        bends = values.sum(1).double().clamp(min=1e-30).log().diff(n=2)
        sure = values.sum(1)[1:-1] > 1e-3
        assert all(0.1 - 1e-3 <= 1 / 6 / math.sqrt(-bend) <= 0.2 + 1e-3 for bend in bends[sure])
    several = gaussian_mixtures(40, (6, 9), 4, (0.1, 0.2), seeded())
    ranks = [int((torch.linalg.svdvals(m) > 1e-4).sum()) for m in several.reshape(40, 6, 9)]
    assert set(ranks) <= {1, 2, 3, 4}
    assert {1, 2, 3} <= set(ranks)


def test_prior_distance():
    attention = torch.rand(2, 3, 5, dtype=torch.float64, generator=seeded()).requires_grad_()
    prior = torch.rand(2, 3, 5, dtype=torch.float64, generator=seeded(1)).softmax(-1)
    total = 0.0
    for row, head in itertools.product(range(2), range(3)):
        mass = float(attention[row, head].detach().sum())
        total += sum((attention[row, head, k].item() - mass * float(prior[row, head, k])) ** 2 for k in range(5))
    value = prior_distance(attention, prior)
    assert value.item() == pytest.approx(total / 30)
    value.backward()
    mass = attention.detach().sum(-1, keepdim=True)
    assert torch.allclose(attention.grad, 2 * (attention.detach() - mass * prior) / 30)


def test_blocks_count_from_the_middle_on():
    assert block_weights(4) == [0, 0.5, 0.75, 1.0]
    assert block_weights(3) == pytest.approx([0, 2 / 3, 1.0])


def test_regions_lie_apart_and_inside():
    regions = random_regions(50, (20, 31), 4, 0.5, seeded())
    covered = torch.zeros(50, 20, 31)
    for owner, top, left, height, width in zip(
        regions.owner, regions.top, regions.left, regions.height, regions.width, strict=True
    ):
        assert 0 <= top <= top + height <= 20
        assert 0 <= left <= left + width <= 31
        assert 5 <= height <= 10
        assert 7 <= width <= 16
        covered[owner, top : top + height, left : left + width] += 1
    assert covered.max() == 1
    counts = regions.owner.bincount(minlength=50)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert len(random_regions(5, (8, 8), 1, 1.0, seeded())) == 5


def test_resized_regions_equal_interpolation_and_give_the_gradient_back():
    x = torch.randn(2, 3, 12, 16, generator=seeded()).requires_grad_()
    regions = Regions(*torch.tensor([[0, 2, 3, 5, 7], [1, 0, 8, 6, 8], [1, 0, 0, 12, 16]]).unbind(1))
    resized = regions.resized(x)
    for k, (owner, top, left, height, width) in enumerate([(0, 2, 3, 5, 7), (1, 0, 8, 6, 8), (1, 0, 0, 12, 16)]):
        crop = x[owner : owner + 1, :, top : top + height, left : left + width]
        wanted = functional.interpolate(crop, size=(12, 16), mode="bilinear", align_corners=False)
        assert torch.allclose(resized[k], wanted[0], atol=1e-5)
    resized[0].square().sum().backward()
    inside = torch.zeros_like(x)
    inside[0, :, 2:7, 3:10] = 1
    assert torch.equal(x.grad != 0, inside.bool())


def test_soft_labels():
    raised = functional.one_hot(torch.arange(200) % 5, 5)
    raised[:, 4] = 1
    labels = soft_labels(raised, 5.0, 10.0, seeded())
    assert torch.allclose(labels.sum(1), torch.ones(200))
    logits = labels.log() - labels.log().min(1, keepdim=True).values  # up to the least, which is in 0 to 1
    assert (logits[raised == 1] >= 4).all()
    assert (logits[raised == 1] <= 10).all()
    assert (logits[raised == 0] <= 1 + 1e-5).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_sardfq_loss_is_its_formula(network):
    model = tiny_model(network)
    noise, _ = start_of(model)
    settings = {"regions": 0, "prior_weight": 50.0, "tv_weight": 0.0}
    with_prior = first_loss(SARDFQ, model, **settings)
    layers = find_attention(trace(model))
    output, found = tap(model.net, noise, [layer.weights for layer in layers])
    generator = FakeContext().generator("attention-priors")
    depth, wanted = len(layers), 0.0
    for number, layer in enumerate(layers, 1):
        if number < depth / 2:
            continue
        weights = found[layer.weights]
        attention = weights[:, :, 0, 1:] if network == "vit" else weights.mean(2)
        rows, heads, patches = attention.shape
        maps = gaussian_mixtures(rows * heads, layer.grid, 5, (0.05, 0.25), generator).reshape(rows, heads, patches)
        error = (attention - attention.sum(-1, keepdim=True) * maps).square().mean()
        wanted += 50.0 * number / depth * (patches / 196) ** 2 * float(error)
    classes = first_loss(SARDFQ, model, **{**settings, "prior_weight": 0.0})
    assert with_prior - classes == pytest.approx(wanted, rel=1e-3, abs=2e-5)
    assert wanted > 1e-3
    # The class loss alone, with hard labels and with the variation of the whole images.
    _, targets = start_of(model)
    hard = {"regions": 0, "prior_weight": 0.0, "labels": "hard", "tv_low": 2600, "tv_high": 2600}
    expected = functional.cross_entropy(output, targets) + 0.05 * variation_loss(noise, 2600)
    assert first_loss(SARDFQ, model, **hard) == pytest.approx(float(expected), rel=1e-4)


def test_sardfq_regions_have_labels_of_their_own():
    model = tiny_model("vit")
    noise, targets = start_of(model)
    ctx = FakeContext()
    settings = {"prior_weight": 0.0, "tv_weight": 0.0}
    regions = random_regions(len(noise), model.input_shape[1:], 4, 0.5, ctx.generator("regions"))
    own = model.sample_targets(len(regions), ctx.generator("pseudo-labels", "regions"))
    whole, parts = model.net(noise), model.net(regions.resized(noise))
    hard = functional.cross_entropy(whole, targets) + functional.cross_entropy(parts, own)
    assert first_loss(SARDFQ, model, labels="hard", **settings) == pytest.approx(float(hard), rel=1e-4)
    for image_label in ("own", "all"):
        raised = functional.one_hot(targets, model.num_classes)
        if image_label == "all":
            for owner, label in zip(regions.owner, own, strict=True):
                raised[owner, label] = 1
        generator = ctx.generator("soft-labels")
        first = soft_labels(raised, 5.0, 10.0, generator)
        second = soft_labels(functional.one_hot(own, model.num_classes), 5.0, 10.0, generator)
        expected = -(first * whole.log_softmax(-1)).sum(1).mean() - (second * parts.log_softmax(-1)).sum(1).mean()
        value = first_loss(SARDFQ, model, image_label=image_label, **settings)
        assert value == pytest.approx(float(expected), rel=1e-4)


def test_sardfq_brings_attention_to_its_priors():
    model = tiny_model("vit")
    options = {"regions": 0, "tv_weight": 0.0, "prior_weight": 1e6, "steps": 40}
    ctx = FakeContext()
    synthesize(SARDFQ, model, ctx=ctx, **options)
    values = ctx.found["synthesize_loss"]["values"]
    assert values[-1] < 0.9 * values[0]


def test_sardfq_without_classes_uses_the_tasks_loss():
    """A dense task has no classes to soften: its loss gets its own targets, those of regions too."""
    seen = []

    def target_loss(output, target):
        seen.append(tuple(target.shape))
        return functional.cross_entropy(output, target[:, 0, 0])

    model = replace(
        tiny_model("vit"),
        sample_targets=lambda n, generator: torch.randint(5, (n, 2, 2), generator=generator),
        target_loss=target_loss,
    )
    synthesize(SARDFQ, model)
    assert (3, 2, 2) in seen
    assert len(set(seen)) == 2


# --- FDD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_bands_keep_their_frequencies(size):
    mask = band_mask(*size, 0.1, 0.5)
    for y, x in itertools.product(range(size[0]), range(size[1])):
        fy, fx = min(y, size[0] - y) / (size[0] / 2), min(x, size[1] - x) / (size[1] / 2)
        assert mask[y, x] == float(0.1 <= math.hypot(fy, fx) <= 0.5)
    black, white = torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1, 1), 1.0)
    rows = torch.arange(size[0]).view(-1, 1) / size[0]

    def wave(cycles: int) -> torch.Tensor:
        return (torch.cos(2 * math.pi * cycles * rows) * torch.ones(size))[None, None]

    mixed = 0.5 + 0.2 * wave(1) + 0.1 * wave(4)  # pixels; 1 and 4 cycles of at most 8 (4.5)
    low = filtered(2 * mixed - 1, band_mask(*size, 0.0, 0.3), black, white)
    assert torch.allclose(low, 2 * (0.5 + 0.2 * wave(1)) - 1, atol=1e-5)
    high = filtered(2 * mixed - 1, band_mask(*size, 0.3, 1.0), black, white)
    assert torch.allclose(high, 2 * (0.1 * wave(4)).abs() - 1, atol=1e-5)
    everything = filtered(2 * mixed - 1, band_mask(*size, 0.0, 2.0), black, white)
    assert torch.allclose(everything, 2 * mixed - 1, atol=1e-5)


def test_filtering_commutes_with_augmentation():
    """Which is why the loss may filter the batch after it was rolled and mirrored."""
    model = tiny_model("vit")
    black, white = model.pixel_bounds()
    x, mask = images(2), band_mask(16, 16, 0.1, 0.6)
    changed = filtered(x.roll((3, 3), (2, 3)).flip(3), mask, black, white)
    assert torch.allclose(changed, filtered(x, mask, black, white).roll((3, 3), (2, 3)).flip(3), atol=1e-4)


def test_curriculum():
    paper = FDD.resolve("paper", {})
    assert [phase(paper, step) for step in (0, 99, 100, 199, 200, 999)] == [
        (0, True),
        (0, True),
        (0, False),
        (0, False),
        (1, True),
        (4, False),
    ]
    assert [phase(FddOptions(rounds=1, steps=2), step) for step in (0, 1)] == [(4, True), (4, False)]
    assert [phase(FddOptions(rounds=10, steps=1), step)[0] for step in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("entropy_band", ["input", "low"])
@pytest.mark.parametrize("network", NETWORKS)
def test_fdd_loss_is_its_formula(network, entropy_band):
    model = tiny_model(network)
    noise, targets = start_of(model)
    contexts = [block.context for block in find_blocks(trace(model))]
    black, white = model.pixel_bounds()
    options = {"bands": ((0.3, 0.7, 0.2),), "entropy_band": entropy_band, "tv_low": 2600, "tv_high": 2600}

    def terms(x: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """Prediction, entropy of patch similarities, and variation's share of the loss."""
        output, found = tap(model.net, x, contexts)
        diversity = sum(float(entropy(patch_similarity(found[c], len(x)), 0.01, 10)) for c in contexts)
        return output, diversity, 0.05 * float(variation_loss(x, 2600))

    on_low, on_high = [], []
    for batch in (noise, noise.flip(3)):  # the first step may mirror
        prediction, low_entropy, variation = terms(filtered(batch, band_mask(16, 16, 0.0, 0.3), black, white))
        on_low.append(float(functional.cross_entropy(prediction, targets)) + variation - low_entropy)
        output, own_entropy, variation = terms(filtered(batch, band_mask(16, 16, 0.2, 0.7), black, white))
        distance = functional.kl_div(output.log_softmax(-1), prediction.softmax(-1), reduction="batchmean")
        assert float(distance) > 1e-3
        taught = 0.5 * float(functional.cross_entropy(output, targets)) + 0.5 * float(distance)
        on_high.append(taught + variation - (own_entropy if entropy_band == "input" else low_entropy))
    value = first_loss(FDD, model, low_share=1.0, **options)
    assert any(value == pytest.approx(wanted, rel=1e-4) for wanted in on_low)
    value = first_loss(FDD, model, low_share=0.0, **options)
    assert any(value == pytest.approx(wanted, rel=1e-4) for wanted in on_high)


# --- MimiQ -------------------------------------------------------------------------------------------------------


def pairwise_dissimilarity(maps: torch.Tensor) -> float:
    """One SSIM after the other, of maps that are each scaled to 0 to 1."""
    rows, heads, queries, _ = maps.shape
    total = 0.0
    for row, query in itertools.product(range(rows), range(queries)):
        scaled = [(m - m.min()) / (m.max() - m.min() + 1e-8) for m in maps[row, :, query]]
        for a, b in itertools.combinations(scaled, 2):
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            ssim = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
            ssim /= (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var(correction=0) + b.var(correction=0) + 9e-4)
            total += 2 * (1 - float(ssim) ** 2)  # either order; a head is like itself
    return total / (rows * queries * heads**2)


def test_head_dissimilarity():
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=seeded())
    assert float(head_dissimilarity(maps)) == pytest.approx(pairwise_dissimilarity(maps), rel=1e-9)
    same = torch.cat([maps[:, :1], 3 * maps[:, :1] + 1], 1)  # range and level do not count
    assert float(head_dissimilarity(same)) == pytest.approx(0.0, abs=1e-6)
    constant = torch.ones(1, 2, 3, 4, requires_grad=True)
    head_dissimilarity(constant).backward()
    assert torch.isfinite(constant.grad).all()


STILL = {"jitter": 0, "noise": 0.0, "colour": 0.0}  # the network sees images as they are


@pytest.mark.parametrize("maps", ["products", "softmax"])
@pytest.mark.parametrize("network", NETWORKS)
def test_mimiq_loss_is_its_formula(network, maps):
    model = tiny_model(network)
    noise, targets = start_of(model)
    layers = [layer for layer in find_attention(trace(model)) if layer.heads > 1]
    points = [layer.products if maps == "products" else layer.weights for layer in layers]
    output, found = tap(model.net, noise, points)
    kept = [between_patches(found[point], layer) for point, layer in zip(points, layers, strict=True)]
    heads = sum(pairwise_dissimilarity(k) for k in kept) / len(kept)
    expected = heads + float(functional.cross_entropy(output, targets)) + 2.5e-3 * float(head_variation(noise))
    assert first_loss(MIMIQ, model, maps=maps, tv_weight=2.5e-3, **STILL) == pytest.approx(expected, rel=1e-4)


def test_mimiq_variation_is_that_of_sixteen_colour_images():
    """The weight belongs to 16x3x224x224: there the scaling is 1, and diagonals count less by root two."""
    slope = torch.arange(224.0).expand(16, 3, 224, 224)
    straight, diagonal = (math.sqrt(48 * rows * 223) for rows in (224, 223))
    assert float(head_variation(slope)) == pytest.approx(straight + 2 * diagonal / math.sqrt(2), rel=1e-5)


def test_mimiq_disturbs_images_as_its_code():
    options = MIMIQ.resolve("paper", {"noise": 0.0, "colour": 0.0})
    marked = torch.zeros(1, 1, 224, 224)
    marked[0, 0, 100, 100] = 1.0
    disturb = Disturbance(options, seeded())
    rolls = {
        half: [divmod(int(disturb(marked, done, 400).argmax()), 224) for done in range(200 * half, 200 * half + 200)]
        for half in (0, 1)
    }
    for half, reach in ((0, 8), (1, 16)):
        assert {abs(down - 100) for down, _ in rolls[half]} <= set(range(reach + 1))
        assert max(abs(down - 100) for down, _ in rolls[half]) == reach
        assert any(down != right for down, right in rolls[half])  # the axes on their own
    # One offset for a channel, which falls to nothing; contrast between 1/e and e, shifts up to 1 before.
    flat = torch.zeros(500, 2, 4, 4)
    for noise, colour, done, spread in ((0.5, 0.0, 0, 0.5 * 0.99), (0.5, 0.0, 49, 0.25), (0.5, 0.0, 99, 0.0)):
        seen = Disturbance(options.model_copy(update={"noise": noise, "colour": colour}), seeded())(flat, done, 100)
        assert torch.equal(seen, seen[:, :, :1, :1].expand_as(seen))
        assert float(seen[:, :, 0, 0].std()) == pytest.approx(spread, rel=0.1)
    coloured = Disturbance(options.model_copy(update={"colour": 1.0}), seeded())
    steps = coloured(flat + torch.tensor([0.0, 1.0, 2.0, 3.0]), 0, 100)[..., 0, :].diff()
    assert float(steps.min()) == pytest.approx(math.exp(-1), rel=0.02)
    assert float(steps.max()) == pytest.approx(math.e, rel=0.02)


def test_mimiq_brings_heads_together():
    model = tiny_model("vit")
    ctx = FakeContext()
    synthesize(MIMIQ, model, ctx=ctx, class_weight=0.0, tv_weight=0.0, **STILL, steps=40)
    values = ctx.found["synthesize_loss"]["values"]
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("tokens", [2, 5, 6, 9])
def test_class_and_registers_may_outnumber_patches(tokens):
    """A class token and registers before the patches of a small image (2x2), or of one patch."""
    grid = (2, 2) if tokens > 4 else (1, 1)
    values = torch.arange(tokens, dtype=torch.float32)[None, :, None]
    assert to_grid(values, grid).flatten().tolist() == list(range(tokens - grid[0] * grid[1], tokens))
    assert fit_grid(tokens, grid) == grid


@pytest.mark.parametrize(("tokens", "grid", "found"), [(16, (8, 8), (4, 4)), (6, (3, 3), (2, 2)), (40, (3, 3), None)])
def test_merged_patches_and_tokens_that_fit_no_grid(tokens, grid, found):
    assert fit_grid(tokens, grid) == found
    if found is None:
        with pytest.raises(ValueError, match="40 tokens do not fit a patch grid of 3x3"):
            to_grid(torch.zeros(1, tokens, 2), grid)


def test_mimiq_takes_the_papers_optimizer():
    """Its floor and decay reach the images, and the defaults are the paper's."""
    options = MIMIQ.resolve("paper", {})
    assert (options.lr, options.lr_floor, options.steps) == (0.1, 0.01, 2000)
    model = tiny_model("vit")
    plain = synthesize(MIMIQ, model, steps=4, weight_decay=0.0, lr_floor=0.0)
    assert not torch.equal(plain, synthesize(MIMIQ, model, steps=4, weight_decay=0.0, lr_floor=0.5))
    assert not torch.equal(plain, synthesize(MIMIQ, model, steps=4, weight_decay=0.5, lr_floor=0.0))


# --- all of them -------------------------------------------------------------------------------------------------

SOURCES = {"sardfq": SARDFQ, "fdd": FDD, "mimiq": MIMIQ, "maskaq": MASKAQ}
NO_TASK = {  # options that leave the terms that are the source's own
    "sardfq": {"regions": 0, "tv_weight": 0.0, "prior_weight": 1e6},
    "fdd": {"class_weight": 0.0, "tv_weight": 0.0, "distillation": 0.0},
    "mimiq": {"class_weight": 0.0, "tv_weight": 0.0},
    "maskaq": {"class_weight": 0.0, "tv_weight": 0.0, "similarity_weight": 0.0},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SOURCES)
def test_gradients_reach_every_image(name, network):
    """Of the source's own terms alone: Adam moves each pixel that has any gradient."""
    model = tiny_model(network)
    low, high = model.pixel_bounds()
    start = start_of(model)[0].clamp(low, high)
    moved = synthesize(SOURCES[name], model, **NO_TASK[name]) != start
    assert (moved.flatten(1).float().mean(1) > 0.2).all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SOURCES)
def test_images_are_pixels_and_repeatable(name, network):
    model = tiny_model(network)
    first, again, other = (synthesize(SOURCES[name], model, seed) for seed in (0, 0, 1))
    low, high = model.pixel_bounds()
    assert first.shape == (3, *model.input_shape)
    assert torch.isfinite(first).all()
    assert (first >= low - 1e-6).all()
    assert (first <= high + 1e-6).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not any(module._forward_hooks for module in model.net.modules())


@pytest.mark.parametrize("name", SOURCES)
def test_rectangular_colour_images(name):
    torch.manual_seed(0)
    net = VisionTransformer(img_size=(16, 24), patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    net = unfused(net.eval()).requires_grad_(False)
    model = replace(tiny_model("vit"), net=net, input_shape=(3, 16, 24), mean=(0.5,) * 3, std=(0.2, 0.3, 0.4))
    made = synthesize(SOURCES[name], model)
    low, high = model.pixel_bounds()
    assert made.shape == (3, 3, 16, 24)
    assert (made >= low - 1e-6).all()
    assert (made <= high + 1e-6).all()


@pytest.mark.parametrize("name", SOURCES)
def test_what_the_source_says_of_itself(name):
    info = SOURCES[name]
    budgets = {p: info.resolve(p, {}).rounds * info.resolve(p, {}).steps for p in PRESETS}
    psaq = {p: PSAQ.resolve(p, {}).rounds * PSAQ.resolve(p, {}).steps for p in PRESETS}
    assert (budgets["quick"], budgets["default"]) == (psaq["quick"], psaq["default"])
    assert budgets["paper"] == {"sardfq": 1000, "fdd": 1000, "mimiq": 2000, "maskaq": 2000}[name]
    info.check_ablations("quick", {})
    assert info.deviations
    assert info.origin == ("published code" if name in ("fdd", "maskaq") else "reconstruction")
