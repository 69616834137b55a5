"""CLAMP-ViT stage 2: layer-wise evolutionary search with a local contrastive fitness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.genes import Evolution, Gene, Population
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.working import Working
from methods.core.budget import Budget
from methods.core.graph.segments import Segment
from methods.core.graph.sites import WeightSite
from methods.core.graph.trace import Trace

Refresh = Callable[[Tensor], Tensor]
BETWEEN_IMAGES = {"infonce", "relational"}  # layer losses that compare images with each other: 0 for one


def check_images(images: Tensor, options: SearchStage, *, whole: bool) -> None:
    """Whether candidates can be ranked; `whole`: by the output loss too.

    Raises:
        ValueError: there is one image, and candidates are ranked by a loss between images alone.
    """
    if len(images) > 1 or whole:
        return
    if options.local_loss in BETWEEN_IMAGES:
        raise ValueError(
            f"one image has no other to contrast with: local_loss={options.local_loss} ranks no candidates; "
            "take at least 2 images, or local_loss=mse"
        )
    if options.centred:
        raise ValueError(
            "one image is its own mean, from which centred=true measures: nothing is left to rank candidates by; "
            "take at least 2 images, or centred=false"
        )


class Search:
    """Evolution of all layers of one quantized model, pass by pass.

    Candidate k of the method's figure is the k-th gene of every layer; since fitness is local, layers evolve in turn
    with the others held at their chosen genes. In mixed precision a change of one layer's width comes with the changes
    of other layers that keep the whole within the budget (`Budget.repair`): fitness of a gene is then

        local(gene) + [exact(width) - exact(width in use)] - [local(width) - local(width in use)] + others,

    where `exact` is the fitness L^C2 + L^O measured for every width of the layer, activation widths included, once per
    pass or before the search alone, `local(width)` the local fitness of the best gene known for it, and `others` the
    sum of the other layers' own differences of `exact`. In short: widths are judged by the whole model, multipliers
    locally. A change of widths is kept only if it lowers the output loss of the whole model plus the local losses of
    all segments with a changed layer, both measured with all layers changed.

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
        check_images(images, options, whole=options.output_loss == "candidate")
        self._w = working
        self._o = options
        self._ctx = ctx
        self._refresh = refresh
        self._evolution = Evolution(options, working.widths, ctx.generator("search"))
        self._f = Fitness(model, graph, working, options, images)
        self._segment_of = {site.parameter: segment for segment in self._f.segments for site in segment.layers}
        self._budget = Budget(working.sizes, spec.weight) if spec.mixed else None
        self._costs: dict[str, dict[int, float]] = {}  # mixed precision: fitness of every layer at every width
        self._known: dict[tuple[str, int], Gene] = {}  # the best gene found for a layer and width
        self.history: list[dict[str, float]] = []
        self.cycles: dict[str, list[float]] = {"fitness": [], "diversity": []}
        self.refreshes: list[int] = []
        if self._budget is not None:
            with self._f.runner:
                self._allocate(self._budget)
        self._populations = {name: self._evolution.start(gene.bits) for name, gene in working.genes.items()}

    @property
    def images(self) -> Tensor:
        """The images searched on last."""
        return self._f.images

    @property
    def evaluated(self) -> int:
        """Candidates whose fitness was measured."""
        return self._f.evaluated

    def diagnostics(self) -> dict[str, Any]:
        """What the search did, for the record."""
        genes = self._w.genes
        return {
            "passes": self.history,
            "cycles": self.cycles,
            "refreshes": self.refreshes,
            "multipliers": {name: gene.multiplier for name, gene in genes.items()},
        }

    def run_pass(self, number: int) -> None:
        """Evolve every layer once; fitness of earlier passes is forgotten, since weights and images are others."""
        before = after = 0.0
        self._cycle_sums = [[0.0, 0.0] for _ in range(self._o.cycles)]
        order = [(segment, site) for segment in self._f.segments for site in segment.layers]
        if self._o.order == "last-to-first":
            order.reverse()
        loss = start_loss = self._f.whole_loss()
        self._f.runner.open()
        try:
            for done, (segment, site) in enumerate(order, start=1):
                self._f.runner.enter(segment)
                first, last, loss = self._evolve(segment, site, loss)
                before, after = before + first, after + last
                self._ctx.progress("search", (number + done / len(order)) / self._o.passes)
        finally:
            self._f.runner.close()
        self._f.runner.restart()
        for fitness, diversity in self._cycle_sums:
            self.cycles["fitness"].append(fitness / len(order))
            self.cycles["diversity"].append(diversity / len(order))
        self.history.append(
            {
                # Mean fitness of the genes in use over layers: L^C2, with L^O if every candidate's counts. In mixed
                # precision a layer that changed its width adds what that was measured to change.
                "fitness_before": before / len(order),
                "fitness_after": after / len(order),
                "output_before": start_loss,
                "output_after": loss,
            }
        )

    # --- fixed precision and the search of multipliers -------------------------------------------------------------

    def _evolve(self, segment: Segment, site: WeightSite, loss: float) -> tuple[float, float, float]:
        """Improve one layer. `loss` is the output loss of the whole model as it is.

        Returns the fitness of the gene in use before and after, and the new output loss.
        """
        o, name = self._o, site.parameter
        population = self._populations[name]
        if population.chosen != self._w.genes[name]:  # another layer's change of width took or gave bits here
            population.chosen = self._w.genes[name]
            population.genes[-1] = population.chosen
        self._renew_costs(segment, site, loss)
        first = self._rescore(segment, site, population, loss)
        for cycle in range(o.cycles):
            children = self._evolution.children(population)
            self._score(segment, site, population, children)
            population.genes += children
            population.select(o.population)
            self._cycle_sums[cycle][0] += population.fitness[population.best]
            self._cycle_sums[cycle][1] += population.diversity
            if self._refresh is not None and (cycle + 1) % o.half_of_cycles == 0:
                loss = self._renew_within(segment, cycle + 1)
                self._renew_costs(segment, site, loss)
                first = self._rescore(segment, site, population, loss)
        best = population.best
        for gene, value in population.fitness.items():
            known = self._known.get((name, gene.bits))
            if known is None or value < population.fitness.get(known, float("inf")):
                self._known[name, gene.bits] = gene
        if best != population.chosen and population.fitness[best] < first:
            loss = self._accept(segment, site, population, best, loss)
        return first, population.fitness[population.chosen], loss

    def _rescore(self, segment: Segment, site: WeightSite, population: Population, loss: float) -> float:
        """Fitness of the whole population on the present images; returns that of the gene in use."""
        population.fitness.clear()
        chosen = population.chosen
        self._base = self._f.contrast(segment, self._f.runner.record(segment))
        first = population.fitness[chosen] = self._base + (loss if self._o.output_loss == "candidate" else 0.0)
        self._terms = dict.fromkeys(self._w.widths, 0.0)
        if self._budget is not None:
            others = [self._best_known(site.parameter, b) for b in self._w.widths if b != chosen.bits]
            values = self._f.values(segment, site, others)
            for gene, value in zip(others, values, strict=True):
                self._terms[gene.bits] = first - value + self._width_cost(site.parameter, gene.bits)
                population.fitness[gene] = value + self._terms[gene.bits]
        self._score(segment, site, population, population.genes)
        return first

    def _score(self, segment: Segment, site: WeightSite, population: Population, genes: Sequence[Gene]) -> None:
        """Fill in the fitness of `genes` (lower is better); each gene is scored once on the same images."""
        new = [gene for gene in dict.fromkeys(genes) if gene not in population.fitness]
        for gene, value in zip(new, self._f.values(segment, site, new), strict=True):
            population.fitness[gene] = value + self._terms[gene.bits]

    def _accept(self, segment: Segment, site: WeightSite, population: Population, best: Gene, loss: float) -> float:
        """Use `best` unless the whole model's fitness says otherwise; returns the output loss."""
        if best.bits != population.chosen.bits:
            return self._accept_widths(segment, site, population, best, loss)
        chosen = population.chosen
        self._w.set({site.parameter: best})
        new_loss = self._f.distance(self._f.runner.logits(segment, self._f.runner.run(segment)))
        gain = population.fitness[chosen] - population.fitness[best]
        # A candidate's fitness holds the output loss already, or shall not.
        if self._o.output_loss != "accept" or gain + loss - new_loss > 0:
            population.chosen = best
            return new_loss
        self._w.set({site.parameter: chosen})
        return loss

    def _accept_widths(
        self, segment: Segment, site: WeightSite, population: Population, best: Gene, loss: float
    ) -> float:
        """The same for a change of widths, which comes with those of other layers."""
        name, old = site.parameter, dict(self._w.genes)
        widths = self._repaired(name, best.bits)
        assert widths is not None, "a width that no repair makes room for has no finite fitness"
        genes = {n: self._best_known(n, b) for n, b in widths.items() if n != name and b != old[n].bits}
        genes[name] = best
        moved = [s for s in self._f.segments if any(self._segment_of[n] is s for n in genes)]
        if self._o.order == "last-to-first":  # segments behind this one were cached before it changed
            self._f.runner.restart()
        before = self._f.locals(moved)
        self._w.set(genes)
        self._f.runner.restart()
        after = self._f.locals(moved)
        new_loss = self._f.whole_loss_within()
        gain = before - after + (0.0 if self._o.output_loss == "none" else loss - new_loss)
        if gain > 0:
            population.fitness[best] = population.fitness[population.chosen] - gain
            population.chosen = best
            loss = new_loss
        else:
            self._w.set({n: old[n] for n in genes})
        # Segments after this one were cached, which later changes of layers would outdate.
        self._f.runner.restart()
        self._f.runner.enter(segment)
        return loss

    def renew(self, refresh: Refresh) -> None:
        """Refresh the images, and the activation ranges with them."""
        self._renew(refresh, len(self.history) * self._o.cycles)

    def _renew(self, refresh: Refresh, cycle: int) -> None:
        images = refresh(self._f.images)
        self._w.observe(images)
        self._f.use(images)
        if cycle not in self.refreshes:
            self.refreshes.append(cycle)

    def _renew_within(self, segment: Segment, cycle: int) -> float:
        """Refresh after `cycle` cycles of a layer; returns the output loss on the new images."""
        assert self._refresh is not None
        self._f.runner.close()
        try:
            self._renew(self._refresh, len(self.history) * self._o.cycles + cycle)
            loss = self._f.whole_loss()
        finally:
            self._f.runner.open()
        self._f.runner.enter(segment)
        return loss

    # --- mixed precision ------------------------------------------------------------------------------------------

    def _allocate(self, budget: Budget) -> None:
        """The first widths: every layer's sensitivity with all others at the widest, then the budget's repair."""
        widest = self._w.bits
        for segment in self._f.segments:
            self._f.runner.enter(segment)
            loss = self._f.distance(self._f.runner.logits(segment))
            for site in segment.layers:
                self._costs[site.parameter] = self._measure_widths(segment, site, loss)
        widths = budget.first(widest, self._costs, self._w.widths, self._ctx)
        self._w.set({name: Gene(bits, 1.0) for name, bits in widths.items()})
        self._f.runner.restart()

    def _renew_costs(self, segment: Segment, site: WeightSite, loss: float) -> None:
        """Measure again what the layer's widths cost, if that is to be."""
        if self._budget is not None and self._o.sensitivity == "pass":
            self._costs[site.parameter] = self._measure_widths(segment, site, loss)

    def _measure_widths(self, segment: Segment, site: WeightSite, loss: float) -> dict[int, float]:
        """L^C2 + L^O with the layer, and the activations that go with it, at every width, all else as it is."""
        name, old = site.parameter, self._w.genes[site.parameter]
        costs = {}
        for bits in self._w.widths:
            gene = old if bits == old.bits else self._best_known(name, bits)
            self._w.set({name: gene})
            self._f.renew_activations(segment, name)
            output = self._f.runner.run(segment)
            costs[bits] = self._f.contrast(segment, output)
            if self._o.output_loss != "none":
                costs[bits] += loss if bits == old.bits else self._f.distance(self._f.runner.logits(segment, output))
            self._f.evaluated += 1
        self._w.set({name: old})
        self._f.renew_activations(segment, name)
        return costs

    def _repaired(self, name: str, bits: int) -> dict[str, int] | None:
        assert self._budget is not None
        return self._budget.repair({**self._w.bits, name: bits}, self._costs, keep=name)

    def _best_known(self, name: str, bits: int) -> Gene:
        return self._known.get((name, bits), Gene(bits, 1.0))

    def _width_cost(self, name: str, bits: int) -> float:
        """What moving the layer to `bits`, and others to make room, adds to the fitness; infinite if nothing does."""
        widths = self._repaired(name, bits)
        if widths is None:
            return float("inf")
        now = self._w.bits
        return sum(self._costs[n][b] - self._costs[n][now[n]] for n, b in widths.items())
