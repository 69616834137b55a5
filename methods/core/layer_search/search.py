"""Alternating search for the steps of an operation's factors: one is chosen while the others are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.layer_search.grids import Grid
from methods.core.layer_search.metrics import Layout, choose
from methods.core.layer_search.operations import Operation
from methods.core.numerics.chunks import at_once, largest_batch
from methods.core.numerics.quantizers import Quantizer

Metric = Callable[[Tensor, Tensor, Tensor | None, Layout], Tensor]


@dataclass
class Factor:
    """One factor of an operation: searched if it has a grid, else rounded by `quantizer` or, without one, in float.

    `alone`: while it is searched, the other factors stay in float (the reference code's way with softmax).
    """

    grid: Grid | None = None
    quantizer: Quantizer | None = None
    alone: bool = False
    choice: Tensor | None = None

    def rounded(self, x: Tensor) -> Tensor:
        """`x` under the quantizer in use."""
        return x if self.quantizer is None else self.quantizer(x)


@dataclass(frozen=True)
class Part:
    """Some rows of an operation: its factors and its output in float, and the gradient in the output."""

    factors: tuple[Tensor, ...]
    output: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class Problem:
    """What is searched. `parts` add up; factors that all parts share (weights) are the same tensor in each."""

    operation: Operation
    parts: Sequence[Part]
    metric: Metric
    layout: Layout


def search(problem: Problem, factors: Sequence[Factor], order: Sequence[int], rounds: int) -> int:
    """Choose the quantizers of all `factors` that have a grid, in `order`, `rounds` times over (PTQ4ViT, algorithm 1).

    A choice only depends on those of the other factors: once none of them moves any more, further rounds are left out.

    Returns:
        The number of candidates that were computed.
    """
    searched = [which for which in order if factors[which].grid is not None]
    for which in searched:
        grid = factors[which].grid
        assert grid is not None
        factors[which].quantizer = grid.quantizer(None)
    computed = 0
    seen: dict[int, tuple[Tensor | None, ...]] = {}  # choices of the others when a factor was last chosen
    for _ in range(rounds):
        for which in searched:
            factor = factors[which]
            assert factor.grid is not None
            others = tuple(f.choice for i, f in enumerate(factors) if i != which and not factor.alone)
            if which in seen and all(a is b for a, b in zip(seen[which], others, strict=True)):
                continue
            seen[which] = others
            choice = choose(scores(problem, factors, which), factor.grid.groups)
            computed += factor.grid.count
            if factor.choice is None or not torch.equal(choice, factor.choice):
                factor.choice = choice  # one object a choice, so that `is` tells whether it moved
                factor.quantizer = factor.grid.quantizer(choice)
    return computed


@torch.no_grad()
def scores(problem: Problem, factors: Sequence[Factor], which: int) -> Tensor:
    """(candidates, groups of the output): the metric of every candidate of factor `which`, over all parts."""
    factor = factors[which]
    grid = factor.grid
    assert grid is not None
    held: dict[int, Tensor] = {}
    total: Tensor | None = None
    for part in problem.parts:
        current = tuple(
            x if i == which or factor.alone else _shared(f, x, held)
            for i, (f, x) in enumerate(zip(factors, part.factors, strict=True))
        )
        largest = max(part.output.numel(), part.factors[which].numel())
        count = at_once(part.output.device, largest)
        found = []
        for start in range(0, grid.count, count):
            rounded = grid.rounded(part.factors[which], slice(start, start + count))
            outputs = problem.operation.candidates(which, rounded, current)
            found.append(problem.metric(outputs, part.output, part.gradient, problem.layout))
        values = torch.cat(found).double()
        total = values if total is None else total + values
    assert total is not None
    return total


def _shared(factor: Factor, x: Tensor, held: dict[int, Tensor]) -> Tensor:
    """`x` rounded; once for all parts if it is one tensor of theirs, such as a weight."""
    if id(x) not in held:
        held[id(x)] = factor.rounded(x)
    return held[id(x)]


def cut(factors: tuple[Tensor, ...], gradient: Tensor | None, operation: Operation, activations: int) -> list[Part]:
    """Parts of few enough rows (images or windows) that a single candidate is no larger than it should be.

    Args:
        factors: of one operation; the first `activations` have rows, weights are shared.
        gradient: in the output, or None.
        operation: computes the float output.
        activations: number of activations among the factors.
    """
    with torch.no_grad():
        output = operation.output(factors)
    rows = len(output)
    limit = largest_batch(output.device)
    largest = max(output.numel(), *(x.numel() for x in factors[:activations]))
    size = max(1, rows * limit // largest)
    if size >= rows:
        return [Part(factors, output, gradient)]
    parts = []
    for start in range(0, rows, size):
        piece = slice(start, start + size)
        taken = tuple(x[piece] if i < activations else x for i, x in enumerate(factors))
        parts.append(Part(taken, output[piece], None if gradient is None else gradient[piece]))
    return parts
