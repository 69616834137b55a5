"""Corrupted evaluation images: the published formulas and severities, of evaluation images alone, and their own key."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from harness.api.contracts import VisionModel
from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from tasks.classification.corruptions import SEVERITIES, Corruption
from tasks.classification.suite import open_suite

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def model(channels: int = 3) -> VisionModel:
    net = torch.nn.Linear(1, 1)
    return VisionModel(
        *("m", "classification", net, (channels, 16, 16), MEAN[:channels], STD[:channels], 10),
        *(lambda n, g: None, lambda a, b: a, lambda a, b: a),
    )


def pixels(side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(0))


def corrupted(name: str, x: torch.Tensor, first: int = 0) -> torch.Tensor:
    own = model(x.shape[1])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (own.mean, own.std))
    return Corruption.parse(name)((x - mean) / std, own, first) * std + mean


@pytest.mark.parametrize("side", [16, 96])
def test_contrast_and_noise_are_their_formulas(side):
    x = pixels(side)
    share, deviation = (0.4, 0.08) if side == 16 else (0.2, 0.18)
    means = x.mean((2, 3), keepdim=True)
    wanted = ((x - means) * share + means).clamp(0, 1)
    assert torch.allclose(corrupted("contrast:3", x), wanted, atol=1e-6)
    middle = torch.full_like(x, 0.5)
    assert float((corrupted("gaussian-noise:3", middle) - 0.5).std()) == pytest.approx(deviation, rel=0.1)


def test_blur_is_a_truncated_gaussian():
    x = torch.zeros(1, 3, 31, 31)
    x[..., 15, 15] = 1
    axis = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(axis**2) / 2)
    kernel = kernel / kernel.sum()
    assert torch.allclose(corrupted("gaussian-blur:5", x)[0, 0, 11:20, 11:20], torch.outer(kernel, kernel), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_an_encoder(channels):
    smooth = torch.nn.functional.interpolate(pixels(4, channels), size=(32, 32), mode="bilinear")
    codes = (255 * smooth).round().byte().permute(0, 2, 3, 1).numpy()
    ours = corrupted("jpeg:5", smooth)
    for image, found in zip(codes, ours, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=40)
        decoded = np.asarray(Image.open(file), dtype=np.float32).reshape(image.shape) / 255
        assert np.abs(found.permute(1, 2, 0).numpy() - decoded).mean() < 0.01  # another library's rounding
    with pytest.raises(UsageError, match="2 channels"):
        corrupted("jpeg:1", pixels(16, 2))


def test_noise_belongs_to_the_image_whatever_the_batch():
    x = pixels()
    whole = corrupted("gaussian-noise:2", x, first=7)
    assert torch.equal(whole[1:], corrupted("gaussian-noise:2", x[1:], first=8))
    assert not torch.equal(whole[0] - x[0], whole[1] - x[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [("blur:3", "there is no corruption 'blur'"), ("jpeg", "no severity 1 to 5"), ("jpeg:6", "no severity 1 to 5")],
)
def test_what_is_unknown_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        Corruption.parse(text)


def test_evaluation_images_alone_are_corrupted():
    clean = open_suite("tiny")
    suite = clean.corrupted("contrast:5")
    net = clean.load(clean.models()[0], torch.device("cpu"))
    seen: list[torch.Tensor] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return net.net(images)

    for each in (clean, suite):
        each.evaluate(net, forward, 4)
    assert seen[1].std() < 0.5 * seen[0].std()
    ours, theirs = (each.calibration(net).images(2, torch.Generator().manual_seed(0)) for each in (clean, suite))
    assert torch.equal(ours, theirs)
    assert clean.data_identity() == suite.data_identity()


def test_a_corruption_is_part_of_the_key_only_where_it_is_set(tmp_path):
    request = {"methods": ("noise",), "suite": "tiny", "bits": ("W8A8",), "references": False}
    catalog, store = Catalog.default(), Store(tmp_path)
    usual = make_plan(Request(**request), catalog, store)
    both = make_plan(Request(**request, corruptions=("clean", "jpeg:3")), catalog, store)
    assert usual.keys < both.keys
    assert len(both.keys) == 2 * len(usual.keys)
    cell = next(each.cell for each in both.cells if each.cell.corruption and not each.cell.is_float)
    assert cell.label.endswith("seed 0 on jpeg:3")
    without = Cell(**{**cell.model_dump(), "corruption": ""})
    assert without.key in usual.keys
    for text in ("fog:3", "jpeg:9"):
        with pytest.raises(UsageError, match="corruption"):
            make_plan(Request(**request, corruptions=(text,)), catalog, store)
    with pytest.raises(UsageError, match="images of task 'detection' cannot be corrupted"):
        detection = {**request, "suite": "embedded", "tasks": ("detection",)}
        make_plan(Request(**detection, corruptions=("jpeg:3",)), catalog, store)


def test_severities_are_in_order():
    for of_large, of_small in SEVERITIES.values():
        for amounts in (of_large, of_small):
            assert len(amounts) == 5
            assert list(amounts) in (sorted(amounts), sorted(amounts, reverse=True))
