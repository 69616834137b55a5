"""Random attention priors and the distance of attention to them (SARDFQ, attention-priors alignment)."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_mixtures(
    count: int, grid: tuple[int, int], components: int, spread: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """`count` random maps on the patches of `grid` (rows, columns), each with sum 1: (count, rows * columns).

    A map is a mixture of k ~ U{1..components} Gaussians with centres uniform on the unit square, weights uniform in
    0 to 1 and a standard deviation for either axis uniform in `spread`, at the patches' centres (SARDFQ; ranges and
    independent axes inferred).
    """
    shape = (count, components)
    used = torch.randint(1, components + 1, (count, 1), generator=generator)
    centres = torch.rand(2, *shape, 1, generator=generator)
    deviations = spread[0] + (spread[1] - spread[0]) * torch.rand(2, *shape, 1, generator=generator)
    weights = torch.rand(*shape, generator=generator).clamp(min=1e-3) * (torch.arange(components) < used)
    down, right = (
        torch.exp(-0.5 * (((torch.arange(side) + 0.5) / side - centre) / deviation) ** 2) / deviation
        for side, centre, deviation in zip(grid, centres, deviations, strict=True)
    )
    maps = torch.einsum("nk,nky,nkx->nyx", weights, down, right).flatten(1)
    return maps / maps.sum(1, keepdim=True)


def prior_distance(attention: Tensor, prior: Tensor) -> Tensor:
    """Mean squared error of attention (rows, heads, patches) to `prior` of that shape, a scalar.

    A prior is a distribution, and attention's share on the class token is not its business: it is scaled to the mass
    that attention gives to the patches (SARDFQ, L_APA of one block; the scaling inferred).
    """
    mass = attention.detach().sum(-1, keepdim=True)
    return (attention - mass * prior).square().mean()


def block_weights(blocks: int) -> list[float]:
    """Weight l / L of each of L blocks, l = 1 ... L, and 0 for the first half, l < L / 2 (SARDFQ, L_APA)."""
    return [number / blocks if 2 * number >= blocks else 0.0 for number in range(1, blocks + 1)]
