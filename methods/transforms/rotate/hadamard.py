"""Random orthogonal matrices whose entries are all alike in size, where there are such."""

from __future__ import annotations

import torch
from torch import Tensor

_PAIR = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def hadamard(size: int) -> Tensor | None:
    """A matrix of entries 1 and -1 whose rows are orthogonal, (size, size) in double precision.

    Sylvester's doubling of the largest odd part for which Paley's constructions give one: of order q + 1 for a prime
    q = 3 mod 4, of order 2 (q + 1) for a prime q = 1 mod 4. None if there is none.
    """
    doublings = 0
    while size % 2 == 0 and size > 1:
        size, doublings = size // 2, doublings + 1
    for kept in range(min(doublings, 3) + 1):  # factors of 2 that the core keeps
        core = _core(size * 2**kept)
        if core is not None:
            for _ in range(doublings - kept):
                core = torch.kron(core, _PAIR)
            return core
    return None


def _core(order: int) -> Tensor | None:
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(order - 1) and order % 4 == 0:
        return _bordered(order - 1, -1.0) + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        conference = _bordered(half - 1, 1.0)
        return torch.kron(conference, _PAIR) + torch.kron(
            torch.eye(half, dtype=torch.float64), torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        )
    return None


def _bordered(q: int, sign: float) -> Tensor:
    """Quadratic characters of differences mod the prime q, with a border of ones, the left one times `sign`."""
    squares = {x * x % q for x in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)], dtype=torch.float64)
    places = torch.arange(q)
    found = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    found[0, 1:], found[1:, 0] = 1.0, sign
    found[1:, 1:] = character[(places[:, None] - places) % q]
    return found


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, int(n**0.5) + 1))


def rotation(size: int, generator: torch.Generator) -> tuple[Tensor, bool]:
    """A random orthogonal matrix (size, size) in double precision, and whether it is a Hadamard matrix: with random
    signs of rows and columns, over the root of its size. Else it is uniformly distributed.
    """
    found = hadamard(size)
    if found is not None:
        signs = torch.randint(0, 2, (2, size), generator=generator).double() * 2 - 1
        return signs[0, :, None] * found * signs[1] / size**0.5, True
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign(), False


def mean_kept(matrix: Tensor) -> Tensor:
    """An orthogonal matrix as near to `matrix` as a reflection allows that maps ones to ones: x Q has the mean of x."""
    ones = torch.full((len(matrix),), len(matrix) ** -0.5, dtype=matrix.dtype)
    across = matrix @ ones - ones
    length = float(across.square().sum())
    if length < 1e-20:
        return matrix
    return matrix - torch.outer(across, across @ matrix) * (2.0 / length)
