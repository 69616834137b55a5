"""All arithmetic is accounted for: seen and quantized, or refused in one sentence that names it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from arithmetic_networks import SHAPE, Between, Maps, audited, quantized
from tiny_networks import NETWORKS, tiny_model
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from harness.api.contracts import VisionModel
from harness.api.images import PROBES
from harness.api.spec import BitSpec
from methods.core.graph.flow import TRACED_IMAGES, UNKNOWN
from methods.core.graph.intercept import OpaqueOperationError, UnsupportedNetworkError
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace, trace_net
from tasks.models.attention import unfused
from tasks.suites.cifar10 import architectures as cifar
from tasks.suites.embedded import architectures as embedded

W = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))


@torch.jit.script
def scripted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x, w) + 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_k1_macs_are_half_of_the_flops_that_torch_counts(name):
    """FAULTS K1: the trace agrees with an independent count at the lowest level, exactly."""
    net = tiny_model(name).net
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(TRACED_IMAGES, *SHAPE))
    macs = sum(op.macs * (TRACED_IMAGES if op.batched else 1) for op in trace_net(net, SHAPE).ops)
    assert 2 * macs == counter.get_total_flops() > 0


QUANTIZED = {
    "torch.mm": lambda x: torch.mm(x[0], x[1])[None],
    "Tensor.mm": lambda x: x[0].mm(x[1])[None],
    "torch.linalg.matmul": lambda x: torch.linalg.matmul(x, x),
    "bmm(mat2=)": lambda x: torch.bmm(x, mat2=x),
    "torch.ops.aten.mm": lambda x: torch.ops.aten.mm(x[0], x[1])[None],
    "torch.ops.aten.linear": lambda x: torch.ops.aten.linear(x, W),
}
REFUSED = {
    "linalg.multi_dot": lambda x: torch.linalg.multi_dot([x[0], x[1], W])[None],
    "torch.inner": lambda x: torch.inner(x, W),
    "torch.mv": lambda x: torch.stack([torch.mv(x[0], W[0])] * 16)[None],
    "torch.addmv": lambda x: torch.stack([torch.addmv(W[0], x[0], W[1])] * 16)[None],
    "torch.addbmm": lambda x: torch.addbmm(W, x, x)[None],
    "torch.chain_matmul": lambda x: torch.chain_matmul(x[0], x[1], W)[None],
    "torch.convolution": lambda x: torch.convolution(x, W[:, :, None], None, [1], [0], [1], False, [0], 1),
    "aten.mm.default": lambda x: torch.ops.aten.mm.default(x[0], x[1])[None],
    "torch.jit.script": lambda x: scripted(x, W),
    "(x[..., None] * w).sum": lambda x: (x[..., None] * W).sum(-2),
    "torch.einsum": lambda x: torch.einsum("nij,jk->nik", x, W),
    "conv1d": lambda x: functional.conv1d(x, W[:, :, None]),
    # further members
    "unrolled depthwise convolution": lambda x: (x.unfold(2, 4, 4) * W[0, :4]).sum(-1).repeat(1, 1, 4),
    "mean of products": lambda x: (x * W[0]).mean(-1, keepdim=True).repeat(1, 1, 16),
    "average pooling of products": lambda x: functional.adaptive_avg_pool1d(x / W[0], 1).repeat(1, 1, 16),
    "sum of moved products": lambda x: (x * W[0]).transpose(1, 2).sum(axis=1)[:, None].repeat(1, 16, 1),
    "stacked products, summed along another axis": lambda x: torch.stack([x * W[0], x * W[1]]).sum(-1)[0][None],
    "stacked products, summed along two axes": lambda x: torch.stack([x * W[0], x * W[1]]).sum((0, 3))[:, None],
    "one column after the other": lambda x: torch.stack([x[..., i, None] * W[i] for i in range(16)]).sum(0),
    "outer product of activations": lambda x: (x[:, :, :, None] * x[:, :, None]).sum(-1),
    "torch.outer": lambda x: torch.outer(x[0, 0], x[0, 1])[None],
    "torch.addcmul": lambda x: torch.addcmul(x, x, x),
    "torch.lerp": lambda x: torch.lerp(x, x * 2, 0.5),
    "torch.cdist": lambda x: torch.cdist(x, x),
    "cosine_similarity": lambda x: functional.cosine_similarity(x[:, None], x[:, :, None], dim=-1),
    "torch.fft": lambda x: torch.fft.fft2(x).real,
    "view_as_complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (8, 2)))).flatten(2),
    "cumsum": lambda x: x.cumsum(1),
    "numpy": lambda x: x + torch.from_numpy(x.numpy() @ W.numpy()),
    "item": lambda x: x / x.abs().max().item(),
    "out=": lambda x: torch.add(x, x, out=torch.empty(x.shape)),
    "dropout in training mode": lambda x: functional.dropout(x, 0.5, training=True),
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "glu, whose gate multiplies out of sight": lambda x: functional.glu(x.repeat(1, 1, 2)),
    "two activations to a power": lambda x: torch.pow(x, x),
}


@pytest.mark.parametrize("form", QUANTIZED)
def test_k1_forms_of_a_product_that_are_quantized(form):
    """FAULTS K1 "a layer that multiplies by torch.mm, ...": these were left in float, and are sites."""
    graph = trace_net(Between(QUANTIZED[form]), SHAPE)
    inside = [op for op in graph.ops if not op.key.module]
    assert [op.key.kind for op in inside] == ["linear" if "linear" in form else "matmul"]
    assert inside[0].macs > 0
    if "linear" in form:  # its weight is not a parameter
        with pytest.raises(OpaqueOperationError, match=r"the weight of model/linear\.0 is computed"):
            find_sites(graph, "matmul", BitSpec(4, 4))
    else:
        assert {(inside[0].key, 0), (inside[0].key, 1)} <= {
            site.point for site in find_sites(graph, "matmul", BitSpec(4, 4)).activations
        }


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_a_parameter_in_a_matrix_product_is_refused(scheme):
    """It would be rounded to the width of activations, per tensor, and its size be that of a float."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(16, 16))
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(x @ self.kernel)

    graph = trace_net(Product(), SHAPE)
    with pytest.raises(OpaqueOperationError, match=r"model/matmul\.0 multiplies by a parameter"):
        find_sites(graph, scheme, BitSpec(4, 8))


@pytest.mark.parametrize("form", REFUSED)
def test_k1_forms_of_arithmetic_that_are_refused(form):
    """FAULTS K1 "15 such forms were found", and others: one sentence names operation and module."""
    net = nn.Sequential(Between(REFUSED[form]))
    with pytest.raises(UnsupportedNetworkError) as refusal:
        trace_net(net, SHAPE)
    text = str(refusal.value)
    assert text.startswith("the network ")
    assert "\n" not in text
    assert " in 0, " in text or "fused attention" in text


@pytest.mark.parametrize("axis", [0, -1])
def test_k1_scaled_branches_are_stacked_and_added_up(axis):
    """Parallel blocks add up their branches, each times its own LayerScale, by a sum of their stack: it is a site."""
    graph = trace_net(Between(lambda x: torch.stack([x.relu() * W[0], x.tanh() * W[1]], axis).sum(dim=axis)), SHAPE)
    (total,) = graph.of_kind("reduce")
    assert {str(key) for key in total.operands[0].ops} == {"model/activation.0", "model/activation.1"}
    assert {(total.key, -1), (total.key, 0)} & {s.point for s in find_sites(graph, "full", BitSpec(4, 4)).activations}


POOLED = {
    "mean": lambda x: x.mean(1),
    "sum": lambda x: x.sum(dim=1),
    "mean without the class token": lambda x: x[:, 1:].mean(np.int64(1)),
    "pooling behind a transpose": lambda x: functional.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1),
}


@pytest.mark.parametrize("pooled", POOLED.values(), ids=POOLED)
def test_scaled_tokens_may_be_pooled(pooled):
    """LayerScale before a mean over tokens: no sum runs along channels, whose scales these are."""
    graph = trace_net(Between(lambda net, x: pooled(x * net.gain), own=True), SHAPE)
    assert [op.key.kind for op in graph.ops] == ["linear", "pool" if graph.of_kind("pool") else "reduce", "linear"]


@pytest.mark.parametrize("change", [lambda x: x.sub_(0.4), lambda x: x.mul_(2.0), lambda x: x[:, :, 0].zero_()])
def test_a_network_that_changes_its_images_is_refused(change):
    """Every pass of a calibration would change them further, and the caller's tensor with them."""

    class Changing(Between):
        def forward(self, x):
            change(x)
            return super().forward(x)

    with pytest.raises(OpaqueOperationError, match="writes into the images that it is given"):
        trace_net(Changing(lambda x: x), SHAPE)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_k1_recurrent_layers_are_refused(layer):
    """FAULTS K1, a further member: all their products lie in one operation."""
    recurrent = layer(16, 16, batch_first=True).eval()
    with pytest.raises(OpaqueOperationError, match=r"torch's (gru|lstm|rnn_tanh) in "):
        trace_net(Between(lambda x: recurrent(x)[0]), SHAPE)


def test_k1_what_a_compiled_or_scripted_function_moves_is_followed():
    """Only its arithmetic is refused: windows may be cut out of sight."""
    moved = torch.jit.script(_flipped)
    graph = trace_net(Between(moved), SHAPE)
    assert [str(key) for key in graph.by_key[graph.ops[-1].key].operands[0].ops] == ["first/linear.0"]


def _flipped(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous()


def test_k1_nothing_is_assumed_of_a_tensor_that_is_no_buffer():
    """FAULTS K1 "unknown origin": it was taken for a constant, and its sum for a masked one."""
    outside = torch.randn(16, 16)
    graph = trace_net(Between(lambda x: (x + outside).softmax(-1)), SHAPE)
    add = graph.of_kind("add")[0]
    assert add.operands[1].others == {UNKNOWN}
    assert not add.operands[1].is_constant
    assert "model/add.0:out" in [str(s) for s in find_sites(graph, "full", BitSpec(4, 4)).activations]


def test_arithmetic_outside_the_part_that_is_quantized_is_not_refused():
    """A detector's boxes may be decoded with whatever torch has; products count all the same."""

    class Whole(nn.Module):
        def __init__(self, after) -> None:
            super().__init__()
            self.body = Between(lambda x: x)
            self.after = after

        def forward(self, x):
            return self.after(self.body(x))

    whole, changed = (trace_net(Whole(after), SHAPE, "body") for after in (lambda x: x, lambda x: x.cumsum(-1)))
    assert changed.inside(whole.ops[0].key)
    with pytest.raises(OpaqueOperationError, match="einsum"):
        trace_net(Whole(lambda x: torch.einsum("nij,nkj->nik", x, x)), SHAPE, "body")


@pytest.mark.parametrize("scheme", ["full", "matmul"])
def test_a_layer_that_only_some_images_reach_is_refused_when_they_do(scheme):
    """A further member of FAULTS K1: the trace sees one way through the network; what lies on another is in float."""

    def between(net, x):
        return net.inner(x) if float(x.abs().max()) > 3 else x

    class Careless(Between):
        """Branches out of sight, as a network may that was told to."""

        def forward(self, x):
            x, loud = self.first(x.squeeze(1)), bool((x.abs() > 5).any())
            return self.last(self.inner(x) if loud else x)

    with pytest.raises(OpaqueOperationError, match="__float__"):
        trace_net(Between(between, own=True), SHAPE)
    model = quantized(Careless(lambda x: x), BitSpec(4, 4), scheme)
    quiet = torch.full((2, *SHAPE), 0.5)
    assert torch.isfinite(model(quiet)).all()
    with pytest.raises(OpaqueOperationError, match=r"inner/linear\.0 on these images"):
        model(quiet * 20)


def test_k1_what_runs_once_for_each_image_is_found_in_the_first_that_the_trace_lacks():
    """FAULTS K1, a further member: an operation for every image of a batch; those of the third had no quantizer."""
    net = Between(lambda net, x: torch.stack([net.inner(functional.gelu(image)) for image in x]), own=True)
    model = quantized(net, BitSpec(4, 4))
    traced_with, more = torch.randn(PROBES, *SHAPE).split([TRACED_IMAGES, PROBES - TRACED_IMAGES])
    assert audited(net, model, traced_with) == []
    (found,) = audited(net, model, torch.cat([traced_with, more]))
    assert found.startswith("the values of what inner/linear.0 receives in slot 0 from model/activation.1 hold ")


class Wrapper(torch.Tensor):
    """A tensor class that computes out of sight."""


def in_a_thread(between):
    def run(net, x):
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(between, net, x).result()

    return run


HIDDEN = {
    "layer in a thread": in_a_thread(lambda net, x: net.inner(x)),
    "product in a thread": in_a_thread(lambda net, x: x @ x.mT),
    "function in a thread": in_a_thread(lambda net, x: functional.gelu(x)),
    "tensor class": lambda net, x: net.inner(functional.gelu(x.as_subclass(Wrapper)).as_subclass(torch.Tensor)),
}


@pytest.mark.parametrize("form", HIDDEN)
def test_k1_what_depends_on_the_images_unseen_is_refused(form):
    """FAULTS K1, further members: nothing was seen of it, and it stayed in float."""
    with pytest.raises(OpaqueOperationError, match="depends on the images but that no operation was seen to make"):
        trace_net(Between(HIDDEN[form], own=True), SHAPE)


PINNED = {
    ("embedded", "vit", "full"): "3d3cea2972a42095",
    ("embedded", "vit", "matmul"): "0f1e574dd7093073",
    ("embedded", "swin", "full"): "1f64c2065d68c27f",
    ("embedded", "swin", "matmul"): "aec5db258acb1a14",
    ("cifar10", "vit", "full"): "30c3e51a7f2fb565",
    ("cifar10", "vit", "matmul"): "cb7d487fae387778",
    ("cifar10", "swin", "full"): "ef1b1961d51e2c67",
    ("cifar10", "swin", "matmul"): "bd52ef278c1e4bfc",
}


@pytest.mark.parametrize(("suite", "name"), sorted({pin[:2] for pin in PINNED}))
def test_sites_of_the_built_in_models_are_pinned(suite, name):
    """Labels, widths, layers and bit operations; baselines and stored records depend on them."""
    torch.manual_seed(0)
    build, channels = {"embedded": (embedded.build, 1), "cifar10": (cifar.build, 3)}[suite]
    graph = trace_net(unfused(build(name).eval().requires_grad_(False)), (channels, 32, 32))
    for scheme in ("full", "matmul"):
        sites = find_sites(graph, scheme, BitSpec(4, 6))
        lines = [f"{site} {site.bits} {' '.join(site.layers)}" for site in sites.activations]
        lines += [f"{site} {site.op} {site.axis}" for site in sites.weights] + [str(sites.bit_operations)]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == PINNED[suite, name, scheme]


def test_a_module_without_parameters_is_a_function():
    """FAULTS K1 "one module called twice": a ReLU has a key for each call; a layer has the same in all of its calls."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.layer = nn.ReLU(), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.relu(x + self.layer(self.relu(self.layer(x))))

    graph = trace_net(Maps(Twice().eval()), SHAPE)
    assert [str(op.key) for op in graph.ops if op.key.module.startswith("between.")] == [
        "between.layer/conv.0",
        "between.relu/activation.0",
        "between.layer/conv.0",
        "between.relu/activation.1",
    ]


def test_a_network_that_is_refused_is_traced_once(monkeypatch):
    """Every method and scheme asks for its trace when a run is planned."""
    model = VisionModel(
        "small", "classification", Between(lambda x: x.cumsum(1)), SHAPE, (0.0,), (1.0,), 5, *[None] * 3
    )
    said = set()
    for _ in range(3):
        with pytest.raises(OpaqueOperationError, match="cumsum") as refusal:
            trace(model)
        said.add(str(refusal.value))
        monkeypatch.setattr("methods.core.graph.trace.trace", lambda *_: pytest.fail("traced again"))
    assert len(said) == 1


class Keeps(nn.Module):
    """Computes a bias in its first pass, which later passes take up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.kept = nn.Linear(16, 16), nn.Linear(16, 5), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.arange(16.0, device=x.device) + torch.ones(16, device=x.device)
        return self.last(self.first(x[:, 0]) + self.kept)


def test_what_only_a_first_pass_computes_is_no_site():
    """ConViT keeps the distances between patches: sites in their computation were never reached again."""
    net = Keeps()
    model = quantized(net, BitSpec(8, 8))
    for device in ("cpu", "meta"):  # what it keeps is not a buffer: of unknown origin, but the same for all images
        assert len(trace_net(Keeps().to(device), SHAPE).of_kind("add")) == 1
    assert torch.isfinite(model(torch.rand(2, *SHAPE))).all()
