"""CLAMP-ViT stage 2: layer-wise evolutionary search of weight scales with a local contrastive fitness."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.contracts import RunContext, VisionModel
from methods.clamp.contrast import output_contrast
from methods.clamp.info import SearchStage
from methods.clamp.segments import Segment, SegmentRunner, cut, float_outputs
from methods.core.quantized import Quantized
from methods.core.quantizers import Uniform
from methods.core.sites import WeightSite
from methods.core.structure import find_blocks
from methods.core.trace import Trace


@dataclass
class _Population:
    """Genes of one layer: multipliers of its min-max scales. `chosen` is the one in use."""

    base: Uniform
    genes: list[float]
    chosen: float = 1.0
    fitness: dict[float, float] = field(default_factory=dict)


class Search:
    """Evolution of all layers of one quantized model, pass by pass.

    Candidate k of the method's figure is the k-th gene of every layer; since fitness is local, layers evolve in turn
    with the others held at their chosen genes. Crossover blends the layer's genes of two parents, mutation multiplies
    by 1 + U(-r, r), the diversity step adds a child of a random parent, and the worst are dropped (CLAMP.md, 2.4).

    Args:
        model: the float model.
        graph: its trace.
        quantized: the model under search; its weights are changed in place.
        options: see `SearchStage`.
        ctx: the run's context.
    """

    def __init__(
        self, model: VisionModel, graph: Trace, quantized: Quantized, options: SearchStage, ctx: RunContext
    ) -> None:
        self._model = model
        self._quantized = quantized
        self._options = options
        self._ctx = ctx
        self._random = ctx.generator("search")
        self._blocks = find_blocks(graph)
        self._segments = cut(graph, self._blocks, quantized.sites.weights)
        low = 1.0 - options.spread
        self._layers = {
            site.parameter: _Population(
                quantized.weights[site.parameter],
                [1.0, *(self._uniform(low, 1.0 + options.mutation) for _ in range(options.population - 1))],
            )
            for site in quantized.sites.weights
        }
        self.history: list[dict[str, float]] = []
        self.evaluated = 0

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._random, dtype=torch.float64))

    def run_pass(self, images: Tensor, number: int) -> None:
        """Evolve every layer once, first to last, on `images`; fitness of earlier images is forgotten."""
        inputs, outputs, final = float_outputs(self._model.net, self._blocks, images)
        before = after = 0.0
        done = 0
        with SegmentRunner(self._quantized, self._blocks, images) as runner:
            loss = float(self._model.output_distance(self._quantized.net(images), final))
            start_loss = loss
            for segment in self._segments:
                runner.enter(segment)
                if segment.is_block:
                    reference = outputs[segment.index]
                else:
                    reference = inputs[segment.index] if segment.index < len(inputs) else final
                task = _Layer(self, runner, segment, reference, final)
                for site in segment.layers:
                    first, last, loss = task.evolve(site, loss)
                    before, after, done = before + first, after + last, done + 1
                    total = len(self._layers) * self._options.passes
                    self._ctx.progress("search", (number * len(self._layers) + done) / total)
        self.history.append(
            {
                # Mean fitness of the genes in use over layers; it includes the output loss if every candidate's does.
                "fitness_before": before / done,
                "fitness_after": after / done,
                "output_before": start_loss,
                "output_after": loss,
            }
        )

    def multipliers(self) -> dict[str, float]:
        """The chosen multiplier of each layer."""
        return {name: population.chosen for name, population in self._layers.items()}


class _Layer:
    """Evolution of the layers of one segment."""

    def __init__(
        self, search: Search, runner: SegmentRunner, segment: Segment, reference: Tensor, final: Tensor
    ) -> None:
        self._s = search
        self._runner = runner
        self._segment = segment
        self._reference = reference
        self._final = final

    def _set(self, site: WeightSite, gene: float) -> None:
        population = self._s._layers[site.parameter]
        self._s._quantized.set_weight(site.parameter, population.base.scaled(gene))

    def _score(self, site: WeightSite, gene: float) -> float:
        """Local fitness of `gene` (lower is better); each gene is scored once a pass."""
        population = self._s._layers[site.parameter]
        if gene not in population.fitness:
            self._set(site, gene)
            output = self._runner.candidate(self._segment, site)
            value = self._local(output)
            if self._s._options.output_loss == "candidate":
                value += self._output_loss(output)
            population.fitness[gene] = value
            self._s.evaluated += 1
        return population.fitness[gene]

    def _local(self, output: Tensor) -> float:
        return float(output_contrast(output, self._reference, self._s._options.search_temperature))

    def _output_loss(self, output: Tensor) -> float:
        logits = self._runner.logits(self._segment, output)
        return float(self._s._model.output_distance(logits, self._final))

    def evolve(self, site: WeightSite, loss: float) -> tuple[float, float, float]:
        """Improve one layer. `loss` is the output loss of the whole model as it is.

        Returns the local fitness of the gene in use before and after, and the new output loss.
        """
        o, population = self._s._options, self._s._layers[site.parameter]
        population.fitness.clear()
        output = self._runner.record(self._segment)
        first = self._local(output) + (loss if o.output_loss == "candidate" else 0.0)
        population.fitness[population.chosen] = first
        for gene in population.genes:
            self._score(site, gene)
        for _ in range(o.cycles):
            self._cycle(site, population)
        best = min(population.genes, key=lambda g: (population.fitness[g], g))
        if best != population.chosen and population.fitness[best] < first:
            self._set(site, best)
            accepted = True
            new_loss = self._output_loss(self._runner.candidate(self._segment, site))
            if o.output_loss == "accept":
                accepted = population.fitness[best] + new_loss < first + loss
            loss = new_loss if accepted else loss
            if accepted:
                population.chosen = best
        self._set(site, population.chosen)
        return first, population.fitness[population.chosen], loss

    def _cycle(self, site: WeightSite, population: _Population) -> None:
        s, o = self._s, self._s._options
        child = self._tournament(population)
        if s._uniform(0.0, 1.0) < o.crossover:
            share = s._uniform(0.0, 1.0)
            child = share * child + (1.0 - share) * self._tournament(population)
        children = [self._mutate(child)]
        if o.diversity:
            index = int(s._uniform(0.0, len(population.genes)))
            children.append(self._mutate(population.genes[index]))
        for gene in children:
            self._score(site, gene)
            population.genes.append(gene)
        population.genes.sort(key=lambda g: (population.fitness[g], g))
        del population.genes[o.population :]

    def _mutate(self, gene: float) -> float:
        r = self._s._options.mutation
        return gene * (1.0 + self._s._uniform(-r, r))

    def _tournament(self, population: _Population) -> float:
        n = len(population.genes)
        drawn = {int(self._s._uniform(0.0, n)) for _ in range(self._s._options.tournament)}
        return min((population.genes[i] for i in drawn), key=lambda g: (population.fitness[g], g))
