"""PSAQ-ViT's loss against a straightforward broadcast formulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from methods.core.synthesis.descent import _schedule, total_variation
from methods.core.synthesis.similarity import density, diversity, entropy, patch_similarity


def broadcast_entropy(context: torch.Tensor, images: int, h: float, points: int) -> torch.Tensor:
    """The reference's way: broadcast cosine similarity, all kernels at once."""
    f = context.mean(1)[:, 1:]
    similarity = functional.cosine_similarity(f[:, :, None], f[:, None], dim=-1).reshape(images, -1)
    low, high = similarity.detach().min(), similarity.detach().max()
    grid = torch.linspace(0, 1, points, dtype=f.dtype) * (high - low) + low
    kernels = torch.exp(-0.5 * ((grid[:, None, None] - similarity) / h) ** 2) / (h * math.sqrt(2 * math.pi))
    p = kernels.mean(-1).T + 1e-4
    return torch.trapezoid(-p * p.log(), grid, dim=1).mean()


@pytest.mark.parametrize(("rows", "images"), [(3, 3), (8, 2)])
def test_entropy_and_gradient_equal_the_broadcast_form(rows, images):
    context = torch.randn(rows, 2, 17, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()
    a = entropy(patch_similarity(ours, images), 0.01, 10)
    b = broadcast_entropy(theirs, images, 0.01, 10)
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-9)
    assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-5
    assert float(theirs.grad.norm()) > 0


def test_density_gradient_is_exact():
    samples = torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grid = torch.linspace(0, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: density(s, grid, 0.1), (samples,))


def test_density_integrates_to_one():
    samples = torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grid = torch.linspace(-1, 2, 6000, dtype=torch.float64)
    area = torch.trapezoid(density(samples, grid, 0.02), grid, dim=1)
    assert torch.allclose(area, torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_total_variation_of_a_ramp():
    image = torch.arange(4.0).repeat(4, 1)[None, None]  # rises by 1 from left to right
    # 12 horizontal, 0 vertical, 9 falling and 9 rising differences of size 1.
    assert float(total_variation(image)) == pytest.approx(math.sqrt(12) + 0 + 3 + 3)


def test_blocks_that_see_one_patch_are_left_out_of_the_diversity():
    context = torch.randn(4, 2, 9, 6, generator=torch.Generator().manual_seed(3))
    wanted = entropy(patch_similarity(context, 2), 0.05, 8)
    for tokens in (1, 2):
        assert torch.equal(diversity([context[:, :, :tokens], context], 2, 0.05, 8), wanted)
    with pytest.raises(ValueError, match="no attention of the network sees two patches"):
        diversity([context[:, :, :1]], 2, 0.05, 8)


@pytest.mark.parametrize("steps", range(1, 13))
def test_the_learning_rate_never_exceeds_its_peak(steps):
    rates = [_schedule(step, steps, 0.2, 0.0) for step in range(steps)]
    assert max(rates) <= 1.0
    ramp = sum(step < 0.2 * steps for step in range(steps))
    assert rates[:ramp] == sorted(rates[:ramp])
    assert rates[ramp:] == sorted(rates[ramp:], reverse=True)


def test_the_cosine_ends_at_its_floor():
    rates = [_schedule(step, 1000, 0.0, 0.01) for step in range(1001)]
    assert (rates[0], rates[-1]) == (1.0, pytest.approx(0.01))
    assert rates[500] == pytest.approx((1 + 0.01) / 2)
