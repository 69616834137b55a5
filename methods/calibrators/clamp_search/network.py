"""CLAMP-ViT stage 2 as its figure draws it: candidates are whole networks, with one fitness each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.genes import Gene, spread
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.network_fitness import NetworkFitness, Score
from methods.calibrators.clamp_search.search import check_images
from methods.calibrators.clamp_search.vectors import Vector, VectorEvolution
from methods.calibrators.clamp_search.working import Working
from methods.core.budget import Budget
from methods.core.graph.trace import Trace

Refresh = Callable[[Tensor], Tensor]


class NetworkSearch:
    """Evolution of one population of vectors, each a width and a multiplier for every layer (search=network).

    In each pass every layer is selected in turn. `cycles` times, children are made (`VectorEvolution`), those that were
    not known are run on the images, and the fittest are kept; the selected layer is one that every mutation changes.
    Fitness is L^C2 summed over all layers' outputs plus L^O, for each child. The fittest vector is in use after a pass.

    In mixed precision a child beyond the budget is repaired like those of the other search: bits are taken from the
    layers that lose least by the sensitivities measured once at the start, all other layers at the widest. A child that
    would need bits of the selected layer is repaired without regard to it.

    Args:
        model: the float model.
        graph: its trace.
        working: the quantized model under search; changed in place.
        spec: the precision; its `weight` is the budget if it is mixed.
        options: see `SearchStage`.
        ctx: the run's context.
        images: calibration images (n, c, h, w).
        refresh: makes the next images from the present ones; called every half of a layer's cycles if given.

    Raises:
        BudgetError: the narrowest candidate widths exceed the budget.
        ValueError: there is one image, and candidates are ranked by a loss between images alone.
    """

    def __init__(  # noqa: PLR0917 - nothing has a default but the last
        self,
        model: VisionModel,
        graph: Trace,
        working: Working,
        spec: BitSpec,
        options: SearchStage,
        ctx: RunContext,
        images: Tensor,
        refresh: Refresh | None = None,
    ) -> None:
        check_images(images, options, whole=options.output_loss != "none")
        self._w = working
        self._o = options
        self._ctx = ctx
        self._refresh = refresh
        self._evolution = VectorEvolution(options, working.widths, ctx.generator("search"))
        self._losses = Fitness(model, graph, working, options, images)
        self._f = NetworkFitness(
            self._losses,
            working,
            graph,
            blocks_alone=options.local_outputs == "blocks",
            whole=options.output_loss != "none",
        )
        self._names = [site.parameter for site in self._f.layers]
        self._budget = Budget(working.sizes, spec.weight) if spec.mixed else None
        self._costs: dict[str, dict[int, float]] = {}
        self._scores: dict[Vector, Score] = {}  # on the present images
        self.history: list[dict[str, float]] = []
        self.cycles: dict[str, list[float]] = {"fitness": [], "diversity": []}
        self.refreshes: list[int] = []
        start = tuple(working.genes[name] for name in self._names)
        if self._budget is not None:
            with self._losses.runner:
                start = self._allocated(self._budget, start)
            self._use(start)
        self._population = self._evolution.start(start)

    @property
    def images(self) -> Tensor:
        """The images searched on last."""
        return self._losses.images

    @property
    def evaluated(self) -> int:
        """Candidates whose fitness was measured."""
        return self._losses.evaluated

    def diagnostics(self) -> dict[str, Any]:
        """What the search did, for the record."""
        return {
            "passes": self.history,
            "cycles": self.cycles,
            "refreshes": self.refreshes,
            "multipliers": {name: gene.multiplier for name, gene in self._w.genes.items()},
        }

    def run_pass(self, number: int) -> None:
        """Select every layer once."""
        o = self._o
        order = list(range(len(self._names)))
        if o.order == "last-to-first":
            order.reverse()
        sums = [[0.0, 0.0] for _ in range(o.cycles)]
        chosen = tuple(self._w.genes[name] for name in self._names)
        self._losses.runner.open()
        try:
            self._rank([chosen])
            before = self._scores[chosen]
            for done, layer in enumerate(order, start=1):
                for cycle in range(o.cycles):
                    self._rank(self._children(layer))
                    best = self._population[0]
                    sums[cycle][0] += self._scores[best].fitness
                    sums[cycle][1] += self._diversity()
                    if self._refresh is not None and (cycle + 1) % o.half_of_cycles == 0:
                        self._renew_within(self._refresh, cycle + 1)
                self._ctx.progress("search", (number + done / len(order)) / o.passes)
        finally:
            self._losses.runner.close()
        best = self._population[0]
        self._use(best)
        for fitness, diversity in sums:
            self.cycles["fitness"].append(fitness / len(order))
            self.cycles["diversity"].append(diversity / len(order))
        after = self._scores[best]
        self.history.append(
            {
                # Of the vector in use: L^F, and L^O alone.
                "fitness_before": before.fitness,
                "fitness_after": after.fitness,
                "output_before": before.output,
                "output_after": after.output,
            }
        )

    def renew(self, refresh: Refresh) -> None:
        """Refresh the images, and the activation ranges with them; what was scored before is forgotten."""
        self._renew(refresh, len(self.history) * self._o.cycles)

    def _renew(self, refresh: Refresh, cycle: int) -> None:
        images = refresh(self._losses.images)
        self._w.observe(images)
        self._losses.use(images)
        self._f.forget()
        self._scores.clear()
        if cycle not in self.refreshes:
            self.refreshes.append(cycle)

    def _renew_within(self, refresh: Refresh, cycle: int) -> None:
        """Refresh after `cycle` cycles of a layer, against the fittest vector so far, and score the population anew."""
        self._losses.runner.close()
        try:
            self._use(self._population[0])
            self._renew(refresh, len(self.history) * self._o.cycles + cycle)
        finally:
            self._losses.runner.open()
        self._rank([])

    def _use(self, vector: Vector) -> None:
        self._w.set(dict(zip(self._names, vector, strict=True)))

    def _rank(self, children: Sequence[Vector]) -> None:
        """Take up `children`, score who has no score yet, and keep the fittest, fittest first; equals count once."""
        every = list(dict.fromkeys([*self._population, *children]))
        new = [vector for vector in every if vector not in self._scores]
        self._scores.update(zip(new, self._f.scores(new), strict=True))
        every.sort(key=lambda vector: (self._scores[vector].fitness, vector))
        self._population = every[: self._o.population]

    def _diversity(self) -> float:
        """Standard deviation of the multipliers over the population, the mean over layers."""
        deviations = [spread(genes) for genes in zip(*self._population, strict=True)]
        return sum(deviations) / len(deviations)

    # --- mixed precision ------------------------------------------------------------------------------------------

    def _children(self, layer: int) -> list[Vector]:
        children = self._evolution.children(self._population, layer)
        if self._budget is None:
            return children
        repaired = (self._repaired(self._budget, vector, layer) for vector in children)
        return [vector for vector in repaired if vector is not None]

    def _repaired(self, budget: Budget, vector: Vector, layer: int) -> Vector | None:
        widths = {name: gene.bits for name, gene in zip(self._names, vector, strict=True)}
        if budget.fits(widths):
            return vector
        found = budget.repair(widths, self._costs, keep=self._names[layer]) or budget.repair(widths, self._costs)
        if found is None:
            return None
        return tuple(gene._replace(bits=found[name]) for name, gene in zip(self._names, vector, strict=True))

    def _allocated(self, budget: Budget, widest: Vector) -> Vector:
        """The first widths: every layer's sensitivity with all others at the widest, then the budget's repair."""
        for i, name in enumerate(self._names):
            vectors = [(*widest[:i], Gene(bits, 1.0), *widest[i + 1 :]) for bits in self._w.widths]
            scores = self._f.scores(vectors)
            self._costs[name] = {bits: s.fitness for bits, s in zip(self._w.widths, scores, strict=True)}
        start = {name: gene.bits for name, gene in zip(self._names, widest, strict=True)}
        widths = budget.first(start, self._costs, self._w.widths, self._ctx)
        return tuple(Gene(widths[name], 1.0) for name in self._names)
