"""timm's classifiers are admitted by what they do, not by their class."""

from __future__ import annotations

import pytest
import timm
import timm.data
import torch
from torch import Tensor, nn

from harness.api.errors import UsageError
from methods.core.graph.trace import trace_net
from tasks.models.attention import unfused
from tasks.models.preprocessing import Preprocessing
from tasks.models.timm_models import build_timm, untrained_timm

SMALL = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def made(monkeypatch):
    """`timm:resnet18` becomes another network."""

    def use(build):
        def create(_name, **options):
            net = build()
            net.num_classes = options.get("num_classes", 5)
            return net

        monkeypatch.setattr(timm, "create_model", create)

    return use


@pytest.mark.fast(name="resnet18")
@pytest.mark.parametrize(
    "name", ["swinv2_tiny_window8_256", "eva_giant_patch14_224", "xcit_nano_12_p16_224", "hiera_tiny_224", "resnet18"]
)
def test_k1_architecture_costs_no_memory_and_no_weights(name):
    """FAULTS K1 "refused by class": any classifier; its architecture lies on the meta device."""
    net, preprocessing = untrained_timm(f"timm:{name}", classes=1000)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert preprocessing == Preprocessing.of(net)
    traced = trace_net(net, preprocessing.input_shape)  # no fused attention is left
    assert traced.ops[-1].shape == (2, 1000)


@pytest.mark.slow
def test_meta_and_real_networks_have_one_trace():
    sketch, _ = untrained_timm("timm:beit_base_patch16_224@random", classes=5, fixed=SMALL)
    net, _ = build_timm("timm:beit_base_patch16_224@random", classes=5, fixed=SMALL)
    assert trace_net(sketch, SMALL.input_shape).ops == trace_net(unfused(net).eval(), SMALL.input_shape).ops


def test_control_flow_on_data_runs_on_the_cpu(made):
    """Such code does not run on the meta device."""

    class Gated(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.mean()) >= 0 else -x)

    made(lambda: Gated(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)))
    net, _ = untrained_timm("timm:resnet18@random", classes=5, fixed=SMALL)
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Conv2d(3, 5, 1), r"'resnet18' is not a classifier: for two images it returns \(2, 5, 32, 32\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 5)), "'resnet18' cannot run on 3x32x32 images: "),
    ],
)
def test_what_is_no_classifier_of_such_images_gets_a_sentence(made, build, message):
    made(build)
    with pytest.raises(UsageError, match=message):
        untrained_timm("timm:resnet18@random", classes=5, fixed=SMALL)


def test_pretrained_classes_are_compared_before_anything_is_downloaded():
    with pytest.raises(UsageError, match="knows 1000 classes, but the data have 7"):
        untrained_timm("timm:vit_tiny_patch16_224", classes=7)


def test_feature_extractors_have_no_classes():
    with pytest.raises(UsageError, match="knows 0 classes, but the data have 1000"):
        untrained_timm("timm:eva02_tiny_patch14_224", classes=1000)


def test_the_look_at_an_architecture_reads_no_checkpoint(tmp_path):
    missing = tmp_path / "missing.pth"
    untrained_timm(f"timm:vit_tiny_patch16_224@{missing}", classes=7)
    with pytest.raises(UsageError, match="missing"):
        build_timm(f"timm:vit_tiny_patch16_224@{missing}", classes=7)


def test_new_keys_of_timms_data_config_are_left_out(monkeypatch):
    """CODE_REVIEW E "any new key is a TypeError for all of imagenet"."""
    net = timm.create_model("vit_tiny_patch16_224")
    before, real = Preprocessing.of(net), timm.data.resolve_data_config
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda **kw: {**real(**kw), "colour_space": "linear"})
    assert Preprocessing.of(net) == before


def test_random_numbers_stay_as_they_were():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    untrained_timm("timm:resnet18@random", classes=5, fixed=SMALL)
    assert torch.equal(torch.rand(3), expected)
