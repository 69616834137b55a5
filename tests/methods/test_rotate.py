"""Rotations: the same function with other weights, whatever calibrator comes behind."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, RandomImages, images, tiny_model
from torch import nn

from harness.api.contracts import VisionModel
from harness.api.errors import BadResult
from harness.api.spec import BitSpec
from harness.api.transformed import transformed
from harness.catalog.catalog import Catalog
from methods.core.audit import audit
from methods.core.graph.intercept import tap
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.transforms.rotate.hadamard import hadamard, mean_kept, rotation
from methods.transforms.rotate.info import RotateOptions
from methods.transforms.rotate.transform import Rotate

SPEC = BitSpec.parse("W4A6")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(model: VisionModel) -> VisionModel:
    """The same with biases, scales and shifts that are not those of a network at its start."""
    net, random = copy.deepcopy(model.net), generator(7)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=random))
    return replace(model, net=net)


@pytest.mark.parametrize("size", [1, 2, 8, 12, 20, 24, 28, 36, 192])
def test_hadamard_matrices(size):
    found = hadamard(size)
    assert found is not None
    assert set(found.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(found @ found.T, size * torch.eye(size, dtype=torch.float64))
    turn, exact = rotation(size, generator())
    assert exact
    torch.testing.assert_close(turn.abs(), torch.full_like(turn, size**-0.5))
    assert not size > 2 or not torch.equal(turn, rotation(size, generator(1))[0])


def test_other_sizes_have_random_rotations_and_the_mean_can_be_kept():
    for size in (6, 15, 48, 92):
        turn, exact = rotation(size, generator())
        assert exact == (size == 48)
        for each in (turn, mean_kept(turn)):
            torch.testing.assert_close(each @ each.T, torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(mean_kept(turn).sum(1), torch.ones(size, dtype=torch.float64))
    # It stays near: what was spread evenly still is.
    turn = rotation(192, generator())[0]
    assert float((mean_kept(turn) - turn).abs().max()) < 1.0 / 192**0.5


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"queries": False, "values": False}], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_stay_and_heads_are_turned(network, options):
    model, x, ctx = trained(tiny_model(network)), images(), FakeContext()
    before = copy.deepcopy(model.net.state_dict())
    net = Rotate(RotateOptions(**options)).transform(model, x, ctx=ctx)
    torch.testing.assert_close(net(x), model.net(x), atol=1e-4, rtol=0.0)
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    assert {n: p.shape for n, p in net.named_parameters()} == {n: p.shape for n, p in model.net.named_parameters()}
    block = find_blocks(trace(model))[-1]
    values = (block.context[0], 1)
    (own, old) = (tap(each, x, [values])[1][values[0], 1] for each in (net, model.net))
    turned = options.get("values", True)
    assert torch.allclose(own, old, atol=1e-4) != turned
    torch.testing.assert_close(own.norm(dim=-1), old.norm(dim=-1), atol=1e-4, rtol=1e-4)
    if network == "vit":
        norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
        assert all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms) == options.get("residual", True)
    elif options.get("residual", True):
        assert "as it was" in ctx.found["rotations"]["residual stream"]  # its merging joins channels


def test_queries_that_are_normalised_are_refused():
    model = trained(tiny_model("vit"))
    for block in model.net.blocks:  # type: ignore[union-attr]
        block.attn.q_norm = block.attn.k_norm = nn.LayerNorm(8)
    rotate = Rotate(RotateOptions())
    reason = rotate.skip(model, spec=SPEC, scheme="full")
    assert reason is not None
    assert "rotate[queries=false]" in reason
    without = Rotate(RotateOptions(queries=False))
    assert without.skip(model, spec=SPEC, scheme="full") is None
    net = without.transform(model, images(), ctx=FakeContext())
    torch.testing.assert_close(net(images()), model.net(images()), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("calibrator", "scheme"), [("repq", "full"), ("repq", "matmul"), ("fqvit", "full")])
@pytest.mark.parametrize("network", NETWORKS)
def test_calibrators_of_layer_norms_run_behind_it(calibrator, network, scheme):
    """And what they give passes the audit against the network as it was loaded."""
    model, ctx = trained(tiny_model(network)), FakeContext()
    method = Catalog.default().resolve(f"real[images=4]+rotate+{calibrator}", "quick")
    built: Any = method.build()
    made = built.quantize(model, spec=SPEC, scheme=scheme, calib=RandomImages(), ctx=ctx)
    _, findings = audit(model, made, images(3), scheme=scheme, spec=SPEC, thorough=True)
    assert not findings
    assert ctx.found["transform"]["difference"] < 1e-4 * ctx.found["transform"]["largest_output"]


class Broken:
    """A transform that changes one thing."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def transform(self, model: VisionModel, images: torch.Tensor, *, ctx: Any) -> Any:
        return self.change(copy.deepcopy(model.net))


def scaled(net: Any) -> Any:
    net.head.weight.mul_(1.01)
    return net


def pruned(net: Any) -> Any:
    net.head.bias = None
    return net


def doubled(net: Any) -> Any:
    once = net.forward
    net.forward = lambda x: (once(x), once(x))
    return net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (doubled, "transform 'mine' gives another function: outputs differ by inf"),
        (scaled, "transform 'mine' gives another function: outputs differ by"),
        (pruned, "transform 'mine' gives a network of other parameters, 'head.bias' for one"),
        (lambda net: net.train(), "left to be trained"),
        (lambda net: None, "no network|does not give a network"),
    ],
)
def test_a_transform_that_is_not_exact_fails_its_cell(change, message):
    model = trained(tiny_model("vit"))
    with pytest.raises(BadResult, match=message), torch.no_grad():
        transformed(Broken(change), "mine", model, images(), FakeContext())
