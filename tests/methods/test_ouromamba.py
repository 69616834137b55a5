"""OuroMamba: outliers are found image by image and counted, steps are the best of their ranges, images contrast."""

from __future__ import annotations

import pytest
import torch
from test_vision_mamba import DEPTH, SHAPE, STATES, TOKENS, vim
from tiny_networks import FakeContext, images, tiny_model

from harness.api.plugins import import_target
from harness.api.spec import BitSpec
from harness.run.checks import summarise
from methods.calibrators.ouromamba.info import INFO
from methods.calibrators.ouromamba.quantizer import Tokens, rounded
from methods.calibrators.ouromamba.scales import errors, weight_grid
from methods.core.audit import Uninspectable, audit
from methods.core.graph.structure import find_scan_blocks
from methods.core.graph.trace import trace
from methods.sources.ouromamba_gen.attention import Layout, find_layout, neighbours, patched_attention
from methods.sources.ouromamba_gen.info import INFO as SOURCE

W4A4 = BitSpec(4, 4)


def tokens(x, refresh=3, scale=0.1):
    return Tokens(torch.full((x.shape[1],), scale), 4, 8, refresh, 3.0)


def spiky(n=5, count=7, channels=40):
    x = torch.randn(n, count, channels, generator=torch.Generator().manual_seed(3)) * 0.2
    x[1, 1, 5] = 9.0  # a channel of one image that sticks out from its second token on
    x[1, 2:, 5] = 1.5
    return x


def test_outlier_channels_join_where_a_token_exceeds_and_leave_with_their_group():
    x = spiky()
    listed = tokens(x).listed(x)
    assert listed[1, :, 5].tolist() == [False, True, True, *[bool(listed[1, t, 5]) for t in range(3, 7)]]
    expected = torch.zeros_like(listed)
    for image in range(len(x)):
        for token in range(x.shape[1]):
            before = expected[image, token - 1] if token % 3 else torch.zeros(x.shape[2], dtype=torch.bool)
            row = x[image, token]
            exceeds = row[~before].abs().max() > 7 * 0.1
            out = row.abs() > row.mean() + 3 * row.std(correction=0)
            expected[image, token] = before | (out & exceeds)
    assert torch.equal(listed, expected)
    assert listed[1, :, 5].sum() >= 2


def test_outliers_of_an_image_do_not_depend_on_its_batch_mates():
    x = spiky()
    quantizer = tokens(x)
    together = quantizer(x)
    for i in range(len(x)):
        assert torch.equal(quantizer(x[i : i + 1]), together[i : i + 1])


def test_other_values_are_clipped_to_15_codes_and_outliers_have_255():
    x = spiky()
    quantizer = tokens(x)
    found, listed = quantizer(x), quantizer.listed(x)
    assert set((found[~listed] / 0.1).round().int().tolist()) <= set(range(-7, 8))
    assert found[1, 1, 5] == pytest.approx(9.0)
    assert found[1, 2, 5] == pytest.approx(round(1.5 / (9 / 127)) * 9 / 127)


def test_a_weight_has_the_shrunken_range_of_least_error():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    grid = weight_grid(weight, 4, ratios=100, norm=2.4, axis=0)
    largest = weight.abs().amax(1)
    error = errors(weight, largest, 7, 100, 2.4)
    for row in range(6):
        best = min(
            (sum((max(-7, min(7, round(float(v) / s))) * s - float(v)).__abs__() ** 2.4 for v in weight[row]), s)
            for s in ((1 - i / 100) * float(largest[row]) / 7 for i in range(100))
        )[1]
        assert grid.scale[row].item() == pytest.approx(best, rel=1e-4)
    assert error.shape == (100, 6)
    assert (grid.qmin, grid.qmax) == (-7, 7)


def test_rounding_has_the_gradients_of_lsq():
    x, step = torch.tensor([0.26, 5.0]), torch.tensor([0.1, 0.1], requires_grad=True)
    rounded(x, step, 7).sum().backward()
    assert step.grad is not None
    assert step.grad.tolist() == pytest.approx([3 - 2.6, 7.0], abs=1e-5)


@pytest.fixture(scope="module")
def result():
    calibrator = INFO.load()(INFO.resolve("quick", {"ratios": 5, "epochs": 1, "batch": 2}))
    context = FakeContext()
    return calibrator.calibrate(vim(), images(4), spec=W4A4, scheme="matmul", ctx=context), context


def test_outliers_are_counted_and_the_result_is_unverified(result):
    quantized, context = result
    told = context.found["ouromamba"]
    assert 0 < told["outlier_share"] < 0.2
    assert told["mean_bits"] == pytest.approx(4 + 4 * told["outlier_share"], abs=1e-3)
    assert context.counters["trained_blocks"] == DEPTH
    # In a block the inputs of in_proj and out_proj, and either way those of x_proj, dt_proj and the scan's four.
    assert told["token_sites"] == DEPTH * (2 + 2 * 6)
    with pytest.raises(Uninspectable, match="have 8 bits there instead of 4"):
        audit(vim(), quantized, images(2), scheme="matmul", spec=W4A4)
    effective = summarise("ouromamba", quantized.summary).effective_activation_bits
    widths = quantized.summary.activation_bits.values()
    assert effective is not None
    assert effective > sum(widths) / len(widths) + told["outlier_share"]  # 4 bits more, and steps; in other sites none
    together = quantized(images(3))
    assert torch.allclose(quantized(images(3)[:1]), together[:1], atol=1e-5)


def test_networks_without_scans_are_refused_in_a_sentence():
    for info in (INFO, SOURCE):
        reason = import_target(info.requires)(tiny_model("vit"), "full")
        assert reason == "no block around selective scans (Vision Mamba) was found in the network"


def test_the_class_token_is_found_in_the_middle():
    graph = trace(vim())
    layout = find_layout(vim().net, graph, find_scan_blocks(graph)[0], images(2))
    assert layout.places.tolist() == [i for i in range(TOKENS) if i != TOKENS // 2]
    assert (layout.grid, layout.both) == ((4, 4), True)


def test_implicit_attention_is_the_unrolled_recursion_of_neighbouring_states():
    """With one channel nothing is averaged: attention times the inputs is what a scan reads from the mixed states."""
    generator = torch.Generator().manual_seed(4)
    delta, x = (torch.rand(1, 16, 1, generator=generator) for _ in range(2))
    b, c = (torch.randn(1, 16, STATES, generator=generator) for _ in range(2))
    a = -torch.rand(1, STATES, generator=generator)
    layout = Layout(torch.arange(16), (4, 4), both=True)
    maps = patched_attention(delta, a, b, c, layout=layout, side=3, by_step=True)[0].flatten(0, 1)
    states, h = [], torch.zeros(STATES)
    for t in range(16):
        h = torch.exp(delta[0, t, 0] * a[0]) * h + delta[0, t, 0] * x[0, t, 0] * b[0, t]
        states.append(h)
    near = neighbours((4, 4), 3, torch.device("cpu"))
    for t in range(16):
        shares = delta[0, :, 0] * near[t]
        mixed = sum(share / shares.sum() * state for share, state in zip(shares, states, strict=True))
        assert (maps[t] @ x[0, :, 0]).item() == pytest.approx((c[0, t] @ mixed).item(), rel=1e-4, abs=1e-6)


def test_images_are_made_and_their_loss_falls():
    source = SOURCE.load()(SOURCE.resolve("quick", {"images": 3, "steps": 12, "jitter": 0}))
    context = FakeContext()
    made = source.images(vim(), spec=W4A4, scheme="full", calib=None, ctx=context)
    assert made.shape == (3, *SHAPE)
    curve = context.found["synthesize_loss"]["values"]
    assert curve[-1] < curve[0]
