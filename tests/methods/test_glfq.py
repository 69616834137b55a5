"""GLF-Q's loss and its MLPs against formulas written out here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model
from torch import nn
from torch.nn import functional

from harness.api.spec import BitSpec
from methods.calibrators.glfq.calibrator import Glfq
from methods.calibrators.glfq.info import INFO, GlfqOptions
from methods.calibrators.glfq.mlp import find_mlps, with_relu
from methods.core.graph.intercept import tap
from methods.core.graph.segments import Segment
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.reconstruction.features import Features, GlobalLocal, head_inputs
from methods.core.reconstruction.walk import Walk


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("network", "feature"), [("vit", 16), ("swin", 16)])
def test_features_are_what_the_head_takes(network, feature):
    """Of a block's own float output those of the float model; of another one those that the rest makes of it."""
    model, x = tiny_model(network), images(5)
    graph = trace(model)
    net: Any = model.net
    walk = Walk(net, find_blocks(graph), x, 2)
    features = Features(walk, graph)
    (target,) = features.targets
    assert target.shape == (5, feature)
    torch.testing.assert_close(net.get_submodule(head_inputs(graph)[0][0].module)(target), net(x), atol=1e-5, rtol=1e-4)
    if network == "swin":
        return
    index = torch.tensor([3, 0])
    (output,) = walk.every(Segment(0, True, ()), walk.enter(Segment(0, True, ())))
    moved = (output[index] + 0.1 * drawn(2, *output.shape[1:])).requires_grad_()
    (found,) = features.after(Segment(0, True, ()), moved, index, walk.outputs)
    wanted = net.norm(net.blocks[1](moved))[:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    cotangent = drawn(*wanted.shape, seed=4)
    grads = [torch.autograd.grad(y, moved, cotangent, retain_graph=True)[0] for y in (found, wanted)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


def test_both_terms_count_from_their_first_values():
    targets, output = [drawn(6, 3)], [drawn(4, 2, 5, seed=1)]
    target, index = [drawn(4, 2, 5, seed=2)], torch.tensor([5, 1, 0, 2])

    def features(outputs: Any, index: Any) -> list[torch.Tensor]:
        return [outputs[0].sum(1)[:, :3]]

    def parts(x: torch.Tensor) -> list[float]:
        own, last = (x - target[0]).numpy(), (x.sum(1)[:, :3] - targets[0][index]).numpy()
        return [float((own**2).sum() / own.size), float((last**2).sum() / last.size)]

    other = 2 * output[0]
    (a, b), (c, d) = parts(output[0]), parts(other)
    for loss, first, second in (
        (GlobalLocal(features, targets, 2.0), 3.0, 2 * c / a + d / b),
        (GlobalLocal(features, targets, 0.0), 1.0, d / b),
        (GlobalLocal(None, (), 2.0), 2.0, 2 * c / a),
    ):
        assert float(loss(output, target, index)) == pytest.approx(first)
        assert float(loss([other], target, index)) == pytest.approx(second, rel=1e-5)
    exact = GlobalLocal(None, (), 2.0)  # an error of 0 divides nothing by 0
    assert float(exact(target, target, index)) == 0.0
    assert torch.isfinite(exact(output, target, index))


def test_mlps_with_relu_are_trained_to_give_what_they_gave():
    model, x = tiny_model("vit"), images(8)
    graph = trace(model)
    mlps = find_mlps(model.net, graph)
    assert [mlp.gelu.module for mlp in mlps] == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    before = copy.deepcopy(model.net.state_dict())
    options = GlfqOptions(mlp_steps=150, mlp_lr=5e-3, batch=8)
    student = with_relu(model.net, graph, x, options, FakeContext())
    assert all(isinstance(student.get_submodule(mlp.gelu.module), nn.ReLU) for mlp in mlps)
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    point = (mlps[0].first, 0)
    taken = tap(model.net, x, [point])[1][point]
    net: Any = model.net
    old: Any = net.blocks[0].mlp
    new: Any = student.get_submodule("blocks.0.mlp")
    untrained = functional.mse_loss(old.fc2(old.fc1(taken).relu()), old(taken))
    assert float(functional.mse_loss(new(taken), old(taken))) < 0.7 * float(untrained)
    # All else is the float model's, the first block's attention for one.
    changed = {k.rpartition(".")[0] for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"blocks.{b}.mlp.fc{i}" for b in (0, 1) for i in (1, 2)}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_mlps_whose_layers_share_parameters_are_left_alone(name):
    """Training one of them would change the other."""
    model = tiny_model("vit")
    first, second = (block.mlp.fc1 for block in model.net.blocks)
    setattr(second, name, getattr(first, name))
    assert find_mlps(model.net, trace(model)) == []


def test_a_network_without_gelu_is_refused():
    model = tiny_model("vit")
    relu = replace(model, net=copy.deepcopy(model.net))
    for block in relu.net.blocks:
        block.mlp.act = nn.ReLU()
    spec = BitSpec.parse("W4A4")
    assert Glfq(GlfqOptions()).skip(model, spec=spec, scheme="full") is None
    assert "mlp=gelu" in str(Glfq(GlfqOptions()).skip(relu, spec=spec, scheme="full"))
    assert Glfq(GlfqOptions(mlp="gelu")).skip(relu, spec=spec, scheme="full") is None


class Prepared(nn.Module):
    """An MLP behind another layer with the same GELU module."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.fc1, self.act, self.fc2 = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(self.norm(self.act(self.pre(x))))))


class Twice(nn.Module):
    """Two MLPs, of which each has its own name for one GELU module; with `tied`, one first layer for both."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.fc3 = self.fc1 if tied else nn.Linear(16, 32)
        self.fc4, self.act = nn.Linear(32, 16), nn.GELU()
        self.again = self.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc4(self.again(self.fc3(self.fc2(self.act(self.fc1(x))))))


def with_mlps(*mlps: nn.Module | None) -> Any:
    """The tiny ViT with these in place of its blocks' MLPs; None leaves one as it is."""
    torch.manual_seed(0)
    model = tiny_model("vit")
    net: Any = copy.deepcopy(model.net)
    for block, mlp in zip(net.blocks, mlps, strict=True):
        if mlp is not None:
            block.mlp = mlp.eval().requires_grad_(False)
    return replace(model, net=net)


def replaced_in(model: Any) -> tuple[nn.Module, dict[str, str], dict[str, Any]]:
    """The student after next to no training, what its activation modules are, and diagnostics."""
    ctx, options = FakeContext(), GlfqOptions(mlp_steps=1, mlp_lr=1e-9, batch=4)
    student = with_relu(model.net, trace(model), images(8), options, ctx)
    modules = student.named_modules(remove_duplicate=False)
    return student, {n: type(m).__name__ for n, m in modules if isinstance(m, nn.GELU | nn.ReLU)}, ctx.found


def test_a_gelu_with_other_work_stays_and_is_named():
    model = with_mlps(None, Prepared())
    _, kinds, found = replaced_in(model)
    assert kinds == {"blocks.0.mlp.act": "ReLU", "blocks.1.mlp.act": "GELU"}
    assert found == {"glfq-gelus": {"left": ["blocks.1.mlp.act"]}}
    assert "nothing else" in str(
        Glfq(GlfqOptions()).skip(with_mlps(Prepared(), Prepared()), spec=BitSpec(4, 4), scheme="full")
    )


class Computed(nn.Module):
    """An MLP whose GELU is no module."""

    def __init__(self, gelu: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gelu = nn.Linear(16, 24), nn.Linear(24, 16), gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


@pytest.mark.parametrize(
    "gelu",
    [
        functional.gelu,
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.erf(x * 2**-0.5)),
    ],
    ids=["function", "tanh", "written out"],
)
def test_a_gelu_that_is_no_module_stays_and_is_named(gelu):
    _, kinds, found = replaced_in(with_mlps(None, Computed(gelu)))
    assert kinds == {"blocks.0.mlp.act": "ReLU"}
    assert found == {"glfq-gelus": {"left": ["blocks.1.mlp"]}}
    skip = Glfq(GlfqOptions()).skip(with_mlps(Computed(gelu), Computed(gelu)), spec=BitSpec(4, 4), scheme="full")
    assert "no module" in str(skip)


def test_a_gelu_that_mlps_share_is_replaced_in_all_of_them():
    model = with_mlps(None, None)
    model.net.blocks[1].mlp.act = model.net.blocks[0].mlp.act
    _, kinds, found = replaced_in(model)
    assert kinds == {"blocks.0.mlp.act": "ReLU", "blocks.1.mlp.act": "ReLU"}
    assert found == {}


def test_a_gelu_that_an_mlp_shares_with_other_work_stays():
    model = with_mlps(None, Prepared())
    model.net.blocks[1].mlp.act = model.net.blocks[0].mlp.act
    _, kinds, found = replaced_in(model)
    assert kinds == {"blocks.0.mlp.act": "GELU", "blocks.1.mlp.act": "GELU"}
    assert found == {"glfq-gelus": {"left": ["blocks.0.mlp.act", "blocks.1.mlp.act"]}}


def test_a_gelu_of_mlps_alone_is_replaced_under_all_its_names():
    student, kinds, found = replaced_in(with_mlps(None, Twice(tied=False)))
    assert kinds == dict.fromkeys(["blocks.0.mlp.act", "blocks.1.mlp.act", "blocks.1.mlp.again"], "ReLU")
    assert found == {}
    mlp: Any = student.get_submodule("blocks.1.mlp")
    x = drawn(2, 3, 16)
    torch.testing.assert_close(mlp(x), mlp.fc4(mlp.fc3(mlp.fc2(mlp.fc1(x).relu())).relu()))


def test_layers_that_two_mlps_share_are_not_trained():
    model = with_mlps(None, Twice(tied=True))
    student, kinds, found = replaced_in(model)
    assert kinds == {"blocks.0.mlp.act": "ReLU", "blocks.1.mlp.act": "GELU", "blocks.1.mlp.again": "GELU"}
    assert found == {"glfq-gelus": {"left": ["blocks.1.mlp.act"]}}
    before = model.net.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items() if k.startswith("blocks.1"))


@pytest.mark.parametrize("mlp", ["gelu", "relu"])
def test_training_brings_the_last_features_nearer(mlp):
    """Nearer than rounding to nearest does, which is where training starts."""
    model, x = tiny_model("vit"), images(8)
    graph = trace(model)
    points = head_inputs(graph)
    reference = tap(model.net, x, points)[1][points[0]]
    spec, errors = BitSpec.parse("W3A4"), []
    for steps, lr in ((1, 1e-9), (20, 5e-3)):
        options = INFO.resolve("quick", {"steps": steps, "weight_lr": lr, "mlp": mlp, "mlp_steps": 40, "mlp_lr": 5e-3})
        made = Glfq(options).calibrate(model, x, spec=spec, scheme="matmul", ctx=FakeContext())  # type: ignore[arg-type]
        with made.interceptor():
            feature = tap(made.net, x, points)[1][points[0]]
        errors.append(float(functional.mse_loss(feature, reference)))
    assert errors[1] < 0.8 * errors[0]
