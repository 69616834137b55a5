"""Candidates that are whole networks, as the method's figure draws them, and how they evolve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import SearchStage

Vector = tuple[Gene, ...]  # a gene for each layer, in execution order
Kind = Literal["bits", "multiplier"]
Cell = tuple[int, Kind]  # number of the layer, which half of its gene


def difference(first: Vector, second: Vector) -> float:
    """How unlike two candidates are: the sum over layers of the differences of widths and of multipliers (ours)."""
    return sum(abs(a.bits - b.bits) + abs(a.multiplier - b.multiplier) for a, b in zip(first, second, strict=True))


class VectorEvolution:
    """Random variation of candidates; the figure says which cells change, the rest is inferred.

    Crossover exchanges cells of two tournament winners, widths for widths and multipliers for multipliers, and makes
    two children. Mutation replaces several cells of each, one of the selected layer's among them. The diversity step
    exchanges cells of the first child with those of the candidate least like it, which makes two more.

    Args:
        options: see `SearchStage`.
        widths: candidate widths; one in fixed precision, where widths are no cells.
        generator: all randomness.
    """

    def __init__(self, options: SearchStage, widths: tuple[int, ...], generator: torch.Generator) -> None:
        self._o = options
        self._widths = widths
        self._generator = generator
        self._kinds: tuple[Kind, ...] = ("bits", "multiplier") if len(widths) > 1 else ("multiplier",)

    def start(self, vector: Vector) -> list[Vector]:
        """`vector`, and others of the same widths whose multipliers are spread below and around its own."""
        low, high = 1.0 - self._o.spread, 1.0 + self._o.mutation
        others = [
            tuple(Gene(gene.bits, gene.multiplier * self._uniform(low, high)) for gene in vector)
            for _ in range(self._o.population - 1)
        ]
        return [vector, *others]

    def children(self, ranked: Sequence[Vector], selected: int) -> list[Vector]:
        """The children of one cycle.

        Args:
            ranked: the population, fittest first.
            selected: number of the layer that is selected for quantization.
        """
        pair = self._tournament(ranked), self._tournament(ranked)
        if self._uniform(0.0, 1.0) < self._o.crossover:
            pair = self.crossover(*pair)
        children = [self.mutate(vector, selected) for vector in pair]
        if self._o.diversity:
            # The first of equals, so that the result does not depend on more than the order.
            unlike = max(ranked, key=lambda vector: difference(children[0], vector))
            children += self.crossover(children[0], unlike)
        return children

    def crossover(self, first: Vector, second: Vector) -> tuple[Vector, Vector]:
        """Both with some cells of the other; together they have the cells that they had."""
        left, right = list(first), list(second)
        for kind in self._kinds:
            places = self._some(len(first), self._o.exchanged)
            partners = places if self._o.exchange == "aligned" else self._some(len(second), self._o.exchanged)
            for here, there in zip(places, partners, strict=True):
                left[here] = left[here]._replace(**{kind: getattr(second[there], kind)})
                right[there] = right[there]._replace(**{kind: getattr(first[here], kind)})
        return tuple(left), tuple(right)

    def mutate(self, vector: Vector, selected: int) -> Vector:
        """`vector` with new values in `mutated` cells, the first of them one of the selected layer's."""
        first: Cell = (selected, self._kinds[self._below(len(self._kinds))])
        cells = [(layer, kind) for layer in range(len(vector)) for kind in self._kinds if (layer, kind) != first]
        genes = list(vector)
        for layer, kind in (first, *(cells[i] for i in self._some(len(cells), self._o.mutated - 1))):
            gene = genes[layer]
            if kind == "bits":
                genes[layer] = gene._replace(bits=self._neighbour(gene.bits))
            else:
                change = self._uniform(-self._o.mutation, self._o.mutation)
                genes[layer] = gene._replace(multiplier=gene.multiplier * (1.0 + change))
        return tuple(genes)

    def _neighbour(self, bits: int) -> int:
        """The next candidate width on one side, drawn; at an end the only one."""
        place = self._widths.index(bits)
        near = [self._widths[i] for i in (place - 1, place + 1) if 0 <= i < len(self._widths)]
        return near[self._below(len(near))]

    def _tournament(self, ranked: Sequence[Vector]) -> Vector:
        return ranked[min(self._below(len(ranked)) for _ in range(self._o.tournament))]

    def _some(self, among: int, count: int) -> list[int]:
        """`count` different numbers below `among`, or all of them in random order."""
        order: list[int] = torch.randperm(among, generator=self._generator).tolist()
        return order[:count]

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self._generator))

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))
