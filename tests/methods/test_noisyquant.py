"""NoisyQuant against the computation that it stands for."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from torch import nn

from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.requirements import unsuited
from methods.calibrators.noisyquant.calibrator import NoisyQuant
from methods.calibrators.noisyquant.info import INFO as CALIBRATOR
from methods.calibrators.noisyquant.info import NoisyquantOptions
from methods.calibrators.noisyquant.noisy import Denoise, Noisy, NoisySearch, denoising_bias, unit_noise
from methods.core.graph.intercept import OUTPUT, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.quantizers import Uniform, weight_quantizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy_tailed(rows: int = 4000, channels: int = 16) -> torch.Tensor:
    """Most values far below a step, a few far out."""
    x = torch.randn(rows, channels, generator=generator())
    return x * x.abs() ** 3


def calibrated(network: str, bits: str = "W8A8", **options):
    chosen = CALIBRATOR.resolve("quick", options)
    return NoisyQuant(chosen).calibrate(
        tiny_model(network), images(), spec=BitSpec.parse(bits), scheme="matmul", ctx=FakeContext()
    )


def crowded(rows: int, channels: int) -> torch.Tensor:
    """Values between two codes, and a tail for which 4 bits need steps of 1."""
    x = 0.45 + 0.02 * torch.randn(rows, channels, generator=generator())
    x[0, :2] = torch.tensor([0.0, 15.0])
    return x


# --- the noise -----------------------------------------------------------------------------------------------------


def explicit(quantizer: Uniform, x: torch.Tensor, top: int) -> torch.Tensor:
    scale, zero = quantizer.scale.double(), int(quantizer.zero_point)
    return ((x.double() / scale + zero).round().clamp(0, top) - zero) * scale


def test_error_of_a_heavy_tailed_tensor_with_and_without_noise():
    x = heavy_tailed()
    quantizer = Uniform.asymmetric(x.min(), x.max(), 6)
    noise = 0.5 * quantizer.scale * unit_noise("uniform", x.shape[1], generator(1))
    for n in (torch.zeros_like(noise), noise):
        got = Noisy(quantizer, n)(x) - n - x
        expected = explicit(quantizer, x + n, 63) - n - x
        assert float(got.abs().mean()) == pytest.approx(float(expected.abs().mean()), rel=1e-3)
        assert float(got.square().mean()) == pytest.approx(float(expected.square().mean()), rel=1e-3)


def test_noise_lowers_the_error_where_values_crowd_between_codes():
    """E|Q(x + N) - N - x| < E|Q(x) - x|: a far tail makes steps so wide that most values share one rounding error."""
    x = crowded(500, 400)
    quantizer = Uniform.asymmetric(x.min(), x.max(), 4)
    assert float(quantizer.scale) == pytest.approx(1.0, rel=0.01)
    unit = unit_noise("uniform", 400, generator(3))
    errors = [float((Noisy(quantizer, n * unit)(x) - n * unit - x).abs().mean()) for n in (0.0, 0.25, 0.5, 1.0)]
    assert errors[0] == pytest.approx(float((explicit(quantizer, x, 15) - x).abs().mean()), rel=1e-3)
    assert errors[2] < 0.7 * errors[0]  # 0.45 without noise, a quarter of a step with noise over a whole one


def test_kinds_of_noise():
    n = 20000
    uniform = unit_noise("uniform", n, generator())
    assert uniform.abs().max() <= 1
    assert abs(float(uniform.mean())) < 0.02
    for kind, mean in (("gaussian", 0.0), ("shifted-gaussian", -1.0)):
        noise = unit_noise(kind, n, generator())
        assert float(noise.mean()) == pytest.approx(mean, abs=0.05)
        assert float(noise.std()) == pytest.approx(2.0, abs=0.05)


def test_the_denoising_bias_removes_the_noise_exactly_without_rounding():
    x = torch.randn(5, 7, 16, generator=generator(), dtype=torch.float64)
    weight = torch.randn(9, 16, generator=generator(1), dtype=torch.float64)
    bias = torch.randn(9, generator=generator(2), dtype=torch.float64)
    noise = torch.randn(16, generator=generator(3), dtype=torch.float64)
    noisy = nn.functional.linear(x + noise, weight, bias)
    assert torch.allclose(Denoise(denoising_bias(weight, noise))(noisy), nn.functional.linear(x, weight, bias))
    # With ever finer rounding the quantized layer tends to the float one.
    errors = []
    for bits in (4, 8, 16, 24):
        quantizer = Uniform.asymmetric(x.min() - 5, x.max() + 5, bits)
        y = nn.functional.linear(Noisy(quantizer, noise)(x), weight, bias)
        errors.append(float((Denoise(denoising_bias(weight, noise))(y) - nn.functional.linear(x, weight, bias)).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


# --- the search ----------------------------------------------------------------------------------------------------


def searched(bits: int = 6, x: torch.Tensor | None = None) -> NoisySearch:
    weight = torch.randn(8, 16, generator=generator(2))
    return NoisySearch(
        heavy_tailed(200) if x is None else x, weight, weight_quantizer(weight, 8, symmetric=True)(weight), bits
    )


def explicit_error(search: NoisySearch, quantizer: Uniform, noise: torch.Tensor) -> float:
    """|Q(W) Q(x + N) - Q(W) N - W x|^2, written as the layer computes it."""
    y = quantizer(search.x + noise) @ search.rounded.T - search.rounded @ noise
    return float((y - search.x @ search.weight.T).square().mean())


@pytest.mark.parametrize("largest", [None, 2])
def test_errors_of_candidates_equal_the_explicit_computation(largest, monkeypatch):
    if largest is not None:  # candidates in several batches
        monkeypatch.setattr("methods.core.numerics.chunks._LARGEST", {"cpu": largest * 200 * 16})
    search = searched()
    quantizer = Uniform.asymmetric(search.x.min(), search.x.max(), 6)
    noises = torch.linspace(0, 2, 9)[:, None] * quantizer.scale * unit_noise("uniform", 16, generator(1))
    expected = [explicit_error(search, quantizer, noise) for noise in noises]
    assert search.errors(quantizer, noises).tolist() == pytest.approx(expected, rel=1e-3)
    assert torch.equal(search.best_noise(quantizer, noises), noises[expected.index(min(expected))])


def test_clipping_is_the_argmin_over_an_explicit_loop():
    search = searched(4)
    low, high = search.x.min(), search.x.max()
    none = torch.zeros(16)
    candidates = [Uniform.asymmetric(low * i / 20, high * i / 20, 4) for i in range(20, 0, -1)]
    errors = [explicit_error(search, q, none) for q in candidates]
    best = candidates[errors.index(min(errors))]
    assert float(search.clip(low, high, 20).scale) == pytest.approx(float(best.scale), rel=1e-5)
    assert float(search.clip(low, high, 0).scale) == pytest.approx(float(candidates[0].scale))


@pytest.mark.parametrize("shape", ["crowded", "heavy-tailed"])
def test_the_chosen_noise_is_within_its_range_and_never_worse_than_none(shape):
    search = searched(4, crowded(200, 16)) if shape == "crowded" else searched()
    low, high = search.x.min(), search.x.max()
    noisy = NoisyQuant(NoisyquantOptions(ranges=40, means=8, clips=0))._noisy(search, low, high, generator(5))
    assert float(noisy.noise.abs().max()) <= 2.5 * float(noisy.quantizer.scale)
    with_noise = explicit_error(search, noisy.quantizer, noisy.noise)
    without = explicit_error(search, noisy.quantizer, torch.zeros(16))
    # A tail so heavy that all else is zero gains nothing from noise, and then gets none.
    assert with_noise < 0.5 * without if shape == "crowded" else with_noise <= without
    still = NoisyQuant(NoisyquantOptions(ranges=1, means=0, clips=0))._noisy(search, low, high, generator(5))
    assert torch.equal(still.noise, torch.zeros(16))


# --- on networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_every_linear_layer_has_a_noise_and_nothing_else(network):
    model = tiny_model(network)
    quantized = calibrated(network, "W4A4")
    sites = find_sites(trace(model), "matmul", BitSpec(4, 4))
    for site in sites.activations:
        quantizer = quantized.activations[site.point]
        assert isinstance(quantizer, Noisy) is (site.op.kind == "linear")
    assert set(quantized.denoise) == {site.op for site in sites.activations if site.op.kind == "linear"}
    assert any(q.noise.abs().max() > 0 for q in quantized.activations.values() if isinstance(q, Noisy))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_layer_computes_the_papers_formula(network):
    """y = Q(W) Q(x + N) + (b - Q(W) N), also for a layer without bias (Swin's patch merging)."""
    quantized = calibrated(network, "W4A4")
    parameters = dict(quantized.net.named_parameters())
    for op, denoise in quantized.denoise.items():
        found = {}
        noisy = quantized.activations[op, 0]
        with quantized.interceptor() as mode:
            mode.transforms[op, 0] = lambda x, found=found, noisy=noisy: noisy(found.setdefault("x", x))
            mode.transforms[op, OUTPUT] = lambda y, found=found, denoise=denoise: found.setdefault("y", denoise(y))
            quantized.net(images(2))
        weight, bias = parameters[f"{op.module}.weight"], parameters.get(f"{op.module}.bias")
        shifted = -(weight @ noisy.noise) if bias is None else bias - weight @ noisy.noise
        expected = nn.functional.linear(noisy.quantizer(found["x"] + noisy.noise), weight, shifted)
        assert torch.allclose(found["y"], expected, atol=1e-4, rtol=1e-4)


def test_noise_is_harmless_at_eight_bits_and_the_float_model_untouched():
    model = tiny_model("vit")
    x = images(8, seed=3)
    exact = model.net(x)
    _, before = tap(model.net, x, [])
    quantized = calibrated("vit")
    assert (quantized(x) - exact).norm() < 0.2 * exact.norm()
    assert before == {}


def test_scheme_full_is_skipped_with_a_sentence():
    method = Catalog.default().resolve("noisyquant")
    assert "matmul" in (unsuited(method, BitSpec(8, 8), "full") or "")
    assert unsuited(method, BitSpec(8, 8), "matmul") is None
    CALIBRATOR.check_ablations("default", {})
