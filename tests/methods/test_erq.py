"""ERQ's regressions against their formulas, written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model

from harness.api.spec import BitSpec
from methods.calibrators.erq.calibrator import Erq
from methods.calibrators.erq.info import INFO as CALIBRATOR
from methods.calibrators.erq.info import ErqOptions
from methods.calibrators.erq.regression import Coded, Moments, activation_regression, nearest, refine, weight_regression
from methods.core.numerics.quantizers import Uniform, weight_quantizer
from methods.core.reparameterization.calibrator import RepQ
from methods.core.reparameterization.options import RepqOptions

OUT, IN, TOKENS, RIDGE = 6, 9, 40, 3.0


def layer(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight with a bias as last column (out, in + 1), float inputs with correlated channels, and quantized ones."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, TOKENS // 2, IN, generator=g) @ torch.randn(IN, IN, generator=g) + 0.5
    weight = torch.randn(OUT, IN + 1, generator=g)
    return weight.double(), x, Uniform.asymmetric(x.min(), x.max(), 3)(x)


def rows(x: torch.Tensor, bias: bool = True) -> np.ndarray:
    flat = x.flatten(0, -2).double().numpy()
    return np.hstack([flat, np.ones((len(flat), 1))]) if bias else flat


def grid_of(weight: torch.Tensor, bits: int = 3) -> Uniform:
    return weight_quantizer(weight.float(), bits, symmetric=False)


def calibrated(network: str, scheme: str = "matmul", bits: str = "W4A4", seed: int = 0, **options):
    return Erq(ErqOptions(**options)).calibrate(
        tiny_model(network), images(), spec=BitSpec.parse(bits), scheme=scheme, ctx=FakeContext(seed)
    )


# --- activation regression ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_activation_regression_is_the_least_squares_solution(bias):
    weight, x, x_q = layer()
    weight = weight if bias else weight[:, :IN]
    got = activation_regression(weight, Moments.of(x_q, x, bias=bias), RIDGE)
    exact, quantized = rows(x, bias), rows(x_q, bias)
    # min |X̄ ΔWᵀ - (Y - X̄ Wᵀ)|² + λ |ΔW|² as one least squares problem of more rows.
    missing = exact @ weight.numpy().T - quantized @ weight.numpy().T
    stacked = np.vstack([quantized, np.sqrt(RIDGE) * np.eye(weight.shape[1])])
    change = np.linalg.lstsq(stacked, np.vstack([missing, np.zeros((weight.shape[1], OUT))]), rcond=None)[0]
    np.testing.assert_allclose(got.numpy(), weight.numpy() + change.T, rtol=1e-6, atol=1e-9)
    left = exact @ weight.numpy().T - quantized @ got.numpy().T
    assert np.square(left).sum() < np.square(missing).sum()


def test_moments_do_not_depend_on_chunks(monkeypatch):
    _, x, x_q = layer()
    whole = Moments.of(x_q, x, bias=True)
    monkeypatch.setattr("methods.calibrators.erq.regression._CHUNK", 7 * (IN + 1))
    parts = Moments.of(x_q, x, bias=True)
    assert torch.allclose(whole.second, parts.second)
    assert torch.allclose(whole.cross, parts.cross)


# --- rounding refinement --------------------------------------------------------------------------------------------


def explicit_refine(row, scale, ends, moment, steps):
    """One output channel: flip the steepest rounding while that lowers δ M δ."""
    low, high = ends
    codes = np.clip(np.round(row / scale), low, high)
    for _ in range(steps):
        delta = codes * scale - row
        gradient = 2 * moment @ delta
        flips = -np.sign(delta)
        able = [
            i for i in range(len(row)) if delta[i] * gradient[i] > 0 and low <= codes[i] + flips[i] <= high
        ]  # fmt: skip
        if not able:
            break
        i = max(able, key=lambda j: abs(gradient[j]))
        new = codes.copy()
        new[i] += flips[i]
        after = new * scale - row
        if after @ moment @ after >= delta @ moment @ delta:
            break
        codes = new
    return codes


@pytest.mark.parametrize("steps", [0, 1, 3, 100])
def test_refinement_equals_an_explicit_loop_and_lowers_the_proxy(steps):
    weight, _, x_q = layer()
    weight = weight[:, :IN]
    grid = grid_of(weight * 0.8)  # some weights are clipped
    x = rows(x_q, bias=False)
    # The paper's proxy of the mean and the covariance; sums instead of means change no decision.
    moment = np.outer(x.mean(0), x.mean(0)) + np.cov(x.T, bias=True)
    second = Moments.of(x_q, x_q, bias=False).second
    np.testing.assert_allclose(second.numpy() / len(x), moment, rtol=1e-9, atol=1e-12)
    got = refine(weight, grid, second, steps).numpy()
    start, proxies = nearest(weight, grid).numpy(), np.zeros((2, OUT))
    for i, row in enumerate(weight.numpy()):
        scale, zero = float(grid.scale[i]), int(grid.zero_point[i])
        expected = explicit_refine(row, scale, (grid.qmin - zero, grid.qmax - zero), moment, steps)
        assert got[i].tolist() == expected.tolist()
        for k, codes in enumerate((start[i], got[i])):
            delta = codes * scale - row
            proxies[k, i] = delta @ moment @ delta
    assert (proxies[1] <= proxies[0]).all()
    assert (proxies[1].sum() < 0.9 * proxies[0].sum()) == (steps > 0)


# --- weight regression ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refinements", [0, 100])
def test_weight_regression_equals_an_explicit_walk(refinements):
    weight, _, x_q = layer()
    grid = grid_of(weight[:, :IN])
    second = Moments.of(x_q, x_q, bias=True).second
    codes, final = weight_regression(weight, grid, second, ridge=RIDGE, refinements=refinements, bias=True)
    w, x = weight.numpy().copy(), rows(x_q)
    scale, zero = grid.scale.double().numpy(), grid.zero_point.numpy()
    left = list(range(IN))
    while left:
        half = len(left) - len(left) // 2
        first, left = left[:half], left[half:]
        others = [*left, IN]  # the bias is never rounded
        moment = x[:, first].T @ x[:, first]
        error = np.zeros((OUT, len(first)))
        for i in range(OUT):
            ends = grid.qmin - zero[i], grid.qmax - zero[i]
            error[i] = explicit_refine(w[i, first], scale[i], ends, moment, refinements) * scale[i] - w[i, first]
        w[:, first] += error
        inverse = np.linalg.inv(x[:, others].T @ x[:, others] + RIDGE * np.eye(len(others)))
        w[:, others] += (-inverse @ x[:, others].T @ x[:, first] @ error.T).T
    np.testing.assert_allclose(codes.numpy() * scale[:, None], w[:, :IN], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(final.numpy(), w, rtol=1e-6, atol=1e-9)
    # What it is for: less error of the layer's outputs than rounding alone.
    plain = np.hstack([nearest(weight[:, :IN], grid).numpy() * scale[:, None], weight[:, IN:].numpy()])
    outputs = x @ weight.numpy().T
    assert np.square(x @ w.T - outputs).sum() < 0.8 * np.square(x @ plain.T - outputs).sum()


def test_coded_weights_lie_on_their_grid():
    weight, _, x_q = layer()
    grid = grid_of(weight[:, :IN])
    codes, _ = weight_regression(
        weight, grid, Moments.of(x_q, x_q, bias=True).second, ridge=RIDGE, refinements=9, bias=True
    )
    values = Coded(grid, codes)(weight[:, :IN].float())
    assert torch.allclose(grid(values), values)
    assert all(len(channel.unique()) <= 8 for channel in values)
    scale, low, high = grid.aligned(values.shape)
    assert (values >= low * scale - 1e-6).all()
    assert (values <= high * scale + 1e-6).all()


# --- the calibrator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["full", "matmul"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_nearer_to_the_float_models_than_repqs(name, scheme):
    model = tiny_model(name)
    exact, errors = model.net(images()), []
    spec = BitSpec(3, 6)
    for method in (RepQ(RepqOptions()), Erq(CALIBRATOR.resolve("default", {}))):
        quantized = method.calibrate(model, images(), spec=spec, scheme=scheme, ctx=FakeContext())
        errors.append(float((quantized(images()) - exact).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_parts_it_is_repq(name):
    got = calibrated(name, activation_regression=False, weight_regression=False)
    repq = RepQ(RepqOptions()).calibrate(
        tiny_model(name), images(), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext()
    )
    assert torch.allclose(got(images(3, 5)), repq(images(3, 5)), atol=1e-5)


@pytest.mark.parametrize("label", CALIBRATOR.ablations)
def test_every_ablation_changes_the_model_and_repeats_itself(label):
    x = images(3, 5)
    changed = calibrated("vit", **CALIBRATOR.ablations[label])(x)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, calibrated("vit")(x))
    assert torch.equal(changed, calibrated("vit", seed=1, **CALIBRATOR.ablations[label])(x))  # nothing is random


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_that_are_all_zero_change_no_weight(name):
    """Images without contrast leave nothing behind some quantizers; lambda relative to their size would be 0."""
    model = tiny_model(name)
    options = CALIBRATOR.resolve("quick", {"refinements": 2})
    flat = torch.zeros_like(images(5))
    made = Erq(options).calibrate(model, flat, spec=BitSpec(2, 2), scheme="full", ctx=FakeContext())
    assert torch.isfinite(made(images(2))).all()


def test_biases_take_part_and_convolutions_do_not():
    model, quantized = tiny_model("vit"), calibrated("vit", bits="W4A8")
    name = "blocks.1.mlp.fc2"
    assert not torch.equal(quantized.net.get_submodule(name).bias, model.net.get_submodule(name).bias)
    repq = RepQ(RepqOptions()).calibrate(model, images(), spec=BitSpec(4, 8), scheme="matmul", ctx=FakeContext())
    for kind in ("weight", "bias"):
        ours, theirs = (getattr(q.net.get_submodule("patch_embed.proj"), kind) for q in (quantized, repq))
        assert torch.equal(ours, theirs)


def test_a_bias_that_another_layer_takes_too_stays_as_it_is():
    model = tiny_model("vit")
    first, second = (block.mlp.fc2 for block in model.net.blocks)
    second.bias = first.bias
    quantized = Erq(CALIBRATOR.resolve("quick", {})).calibrate(
        model, images(), spec=BitSpec(4, 8), scheme="matmul", ctx=FakeContext()
    )
    for layer in (quantized.net.blocks[0].mlp.fc2, quantized.net.blocks[1].mlp.fc2):
        assert torch.equal(layer.bias, first.bias)
    own = "blocks.0.attn.proj"
    assert not torch.equal(quantized.net.get_submodule(own).bias, model.net.get_submodule(own).bias)
