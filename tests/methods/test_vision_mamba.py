"""Vision Mamba: the scan is one operation that is counted and quantized, and which methods work with it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from arithmetic_networks import SHAPE, audited, model_of, quantized
from tiny_networks import CLASSES, FakeContext, images
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness.api.errors import UsageError
from harness.api.plugins import import_target
from harness.api.spec import BitSpec
from methods.catalog import CALIBRATORS, METHODS, SOURCES
from methods.core.deployment import deployed
from methods.core.graph.flow import TRACED_IMAGES
from methods.core.graph.intercept import OUTPUT, Interceptor, OpaqueOperationError
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_pieces
from methods.core.graph.trace import trace, trace_net
from tasks.models import vision_mamba
from tasks.models.vision_mamba import VisionMamba, selective_scan

W4A8 = BitSpec(4, 8)
DEPTH, TOKENS, CHANNELS, STATES = 2, 17, 32, 4


@cache
def vim():
    torch.manual_seed(0)
    net = VisionMamba(16, 4, 1, CLASSES, embed_dim=16, depth=DEPTH, states=STATES).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and parameter.shape[-1] != STATES:
                parameter.mul_(2.0)
    return model_of(net)


def inputs(n=3, tokens=7, channels=5, states=4):
    generator = torch.Generator().manual_seed(2)
    x, delta, b, c = (
        torch.randn(n, tokens, size, generator=generator) for size in (channels, channels, states, states)
    )
    a, d = torch.randn(channels, states, generator=generator), torch.randn(channels, generator=generator)
    return x, delta.abs(), -a.exp(), b, c, d


def test_the_scan_is_the_recursion_of_its_formula():
    x, delta, a, b, c, d = (value.double() for value in inputs())
    found = selective_scan(x, delta, a, b, c, d)
    for i in range(x.shape[0]):
        for j in range(x.shape[2]):
            h = torch.zeros(a.shape[1], dtype=torch.float64)
            for t in range(x.shape[1]):
                h = torch.exp(delta[i, t, j] * a[j]) * h + delta[i, t, j] * x[i, t, j] * b[i, t]
                assert found[i, t, j].item() == pytest.approx((c[i, t] @ h + d[j] * x[i, t, j]).item())


class Multiplications(TorchDispatchMode):
    """Counts values that elementwise products make."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in {"aten::mul", "aten::addcmul"}:
            self.count += result.numel()
        return result


def test_the_multiplications_of_scans_are_those_that_run():
    net = vim().net
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(torch.zeros(TRACED_IMAGES, *SHAPE))
    with torch.no_grad(), Multiplications() as inside:
        n = TRACED_IMAGES
        x, state = torch.ones(n, TOKENS, CHANNELS), torch.ones(n, TOKENS, STATES)
        selective_scan(x, x, torch.ones(CHANNELS, STATES), state, state, torch.ones(CHANNELS))
    ops = trace_net(net, SHAPE).ops
    scans = [op for op in ops if op.key.kind == "scan"]
    assert len(scans) == 2 * DEPTH
    assert {TRACED_IMAGES * op.macs for op in scans} == {inside.count}
    assert 2 * sum(op.macs * TRACED_IMAGES for op in ops if op.key.kind != "scan") == flops.get_total_flops()
    sites = find_sites(trace(vim()), "matmul", W4A8)
    assert sum(product.macs for product in sites.products if not product.elementwise) == sum(op.macs for op in ops)


def test_a_scan_that_multiplies_more_than_the_formula_is_refused(monkeypatch):
    def selective_scan(x, delta, a, b, c, d):  # noqa: PLR0917
        values = (x, delta, a, b, c, d)
        if torch.overrides.has_torch_function(values):
            return torch.overrides.handle_torch_function(selective_scan, values, *values)
        return real(*values) * 2.0

    real = vision_mamba.selective_scan
    monkeypatch.setattr(vision_mamba, "selective_scan", selective_scan)
    with pytest.raises(OpaqueOperationError, match=r"selective_scan in blocks\.0\.forward_scan, which multiplies"):
        trace_net(vim().net, SHAPE)


@pytest.mark.parametrize(("scheme", "ends", "block"), [("full", 5 + 2, 19), ("matmul", 2, 2 + 2 * 9)])
def test_sites_are_those_of_a_hand_count(scheme, ends, block):
    """Scheme full: image, patches, positions and their sum, with the class token; norm and logits at the end. A block:
    norm, in_proj, gate, sum, product, out_proj, residual, and in either direction SiLU, x_proj, steps, a, d, result.
    Scheme matmul: inputs of layers (5 in either direction but for the scan's 6) and of scans.
    """
    sites = find_sites(trace(vim()), scheme, W4A8)
    assert len(sites.weights) == 2 + DEPTH * (2 + 2 * 3)
    assert len(sites.activations) == ends + DEPTH * block
    scanned = {
        str(site) for site in sites.activations if site.op.kind == "scan" and site.op.module.startswith("blocks.1")
    }
    slots = ("in2", "in5", "out") if scheme == "full" else ("in0", "in1", "in2", "in3", "in4", "in5")
    directions = ("forward_scan", "backward_scan")
    assert scanned == {f"blocks.1.{way}/scan.0:{slot}" for way in directions for slot in slots}


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_without_quantizers_it_is_the_float_network_bit_for_bit(scheme):
    net = vim().net
    sites = find_sites(trace(vim()), scheme, W4A8)
    x = images()
    with torch.no_grad():
        expected = net(x)
        with Interceptor(net, {site.point: lambda x: x for site in sites.activations}, traced=sites.traced):
            assert torch.equal(net(x), expected)


class InFloat:
    low = high = torch.tensor(0.0)

    def __call__(self, x):
        return x


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_the_audit_finds_nothing_and_sees_a_scan_in_float(scheme):
    bits = BitSpec(4, 4)
    result = quantized(vim().net, bits, scheme)
    assert audited(vim().net, result, images(), bits, scheme) == []
    scans = [site for site in result.sites.activations if site.op.kind == "scan"]
    point = next(site.point for site in scans if site.slot in {OUTPUT, 1})
    result.activations[point] = InFloat()
    assert any("scan.0" in finding for finding in audited(vim().net, result, images(), bits, scheme))


def test_blocks_are_found_and_rounding_is_learned_by_them():
    info = import_target(CALIBRATORS["qdrop"])
    assert [piece.path for piece in find_pieces(trace(vim()))] == ["blocks.0", "blocks.1"]
    calibrator = info.load()(info.resolve("quick", {"steps": 2, "batch": 2}))
    context = FakeContext()
    result = calibrator.calibrate(vim(), images(4), spec=W4A8, scheme="full", ctx=context)
    assert {"blocks.0", "blocks.1"} < set(context.found["reconstruction-joint"]["units"])
    assert bool(torch.isfinite(result(images(2))).all())


WORKING = {"noise", "real", "minmax", "ema", "omse", "percentile", "qdrop", "brecq", "adaround", "gptq", "microscopiq"}
REFUSED = {
    "psaq",
    "psaq2",
    "fdd",
    "clamp",
    "mimiq",
    "sardfq",
    "ptq4vit",
    "baseptq",
    "adalog",
    "erq",
    "evolq",
    "clamp-search",
}


@pytest.mark.parametrize("name", sorted(WORKING | REFUSED))
def test_what_needs_attention_is_refused_in_a_sentence(name):
    info = import_target((METHODS | SOURCES | CALIBRATORS)[name])
    reason = import_target(info.requires)(vim(), "matmul") if info.requires else None
    if name in WORKING:
        assert reason is None
    else:
        assert reason
        assert "no transformer block" in reason or "a selective scan" in reason


def test_an_export_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match=r"selective scan \(blocks.0.forward_scan/scan.0\), for which ONNX"):
        deployed(quantized(vim().net, W4A8), vim())
