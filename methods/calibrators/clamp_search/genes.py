"""Genes of one layer and how they evolve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from methods.calibrators.clamp_search.info import SearchStage


class Gene(NamedTuple):
    """A layer's weight width, and the multiplier of its min-max scales."""

    bits: int
    multiplier: float


def spread(genes: Iterable[Gene]) -> float:
    """Standard deviation of the multipliers."""
    values = torch.tensor([gene.multiplier for gene in genes], dtype=torch.float64)
    return float(values.std(correction=0))


@dataclass
class Population:
    """Genes of one layer; `chosen` is in use. `fitness` holds what was scored on the present images."""

    genes: list[Gene]
    chosen: Gene
    fitness: dict[Gene, float] = field(default_factory=dict)

    def select(self, size: int) -> None:
        """Keep the `size` fittest; ties go to fewer bits."""
        self.genes.sort(key=lambda g: (self.fitness[g], g))
        del self.genes[size:]

    @property
    def best(self) -> Gene:
        """The fittest gene."""
        return min(self.genes, key=lambda g: (self.fitness[g], g))

    @property
    def diversity(self) -> float:
        """Standard deviation of the multipliers."""
        return spread(self.genes)


class Evolution:
    """Random variation of genes (after Evol-Q's tournament).

    Crossover blends multipliers of two tournament winners and takes the width of one of them; mutation multiplies by
    1 + U(-r, r) and, in mixed precision, moves the width to a neighbouring candidate or leaves it; the diversity step
    adds a child of a random parent.

    Args:
        options: see `SearchStage`.
        widths: candidate widths; one in fixed precision.
        generator: all randomness.
    """

    def __init__(self, options: SearchStage, widths: tuple[int, ...], generator: torch.Generator) -> None:
        self._o = options
        self._widths = widths
        self._generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def start(self, bits: int) -> Population:
        """The min-max gene, others of the nearest widths for up to half, and the rest spread below and around it."""
        start = Gene(bits, 1.0)
        nearest = sorted((b for b in self._widths if b != bits), key=lambda b: (abs(b - bits), b))
        genes = [start, *(Gene(b, 1.0) for b in nearest[: self._o.population // 2])]
        low, high = 1.0 - self._o.spread, 1.0 + self._o.mutation
        genes += [Gene(bits, self.uniform(low, high)) for _ in range(self._o.population - len(genes))]
        return Population(genes, start)

    def children(self, population: Population) -> list[Gene]:
        """The children of one cycle."""
        parent = self._tournament(population)
        bits, multiplier = parent
        if self.uniform(0.0, 1.0) < self._o.crossover:
            other = self._tournament(population)
            share = self.uniform(0.0, 1.0)
            multiplier = share * multiplier + (1.0 - share) * other.multiplier
            if len(self._widths) > 1 and self.uniform(0.0, 1.0) < 0.5:
                bits = other.bits
        children = [self._mutate(Gene(bits, multiplier))]
        if self._o.diversity:
            children.append(self._mutate(population.genes[int(self.uniform(0.0, len(population.genes)))]))
        return children

    def _mutate(self, gene: Gene) -> Gene:
        bits = gene.bits
        if len(self._widths) > 1:
            place = self._widths.index(bits) + int(self.uniform(0.0, 3.0)) - 1
            bits = self._widths[min(max(place, 0), len(self._widths) - 1)]
        return Gene(bits, gene.multiplier * (1.0 + self.uniform(-self._o.mutation, self._o.mutation)))

    def _tournament(self, population: Population) -> Gene:
        n = len(population.genes)
        drawn = {int(self.uniform(0.0, n)) for _ in range(self._o.tournament)}
        return min((population.genes[i] for i in drawn), key=lambda g: (population.fitness[g], g))
