"""Fitness of candidates that are whole networks: each is run from the first block that no known one shares with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.vectors import Vector
from methods.calibrators.clamp_search.working import Working
from methods.core.graph.flow import TRACED_IMAGES
from methods.core.graph.outputs import split
from methods.core.graph.segments import Segment, places
from methods.core.graph.trace import Trace
from methods.core.numerics.chunks import at_once

_HELD = 2**30  # bytes of block outputs that are kept: 15 candidates of a DeiT-S with 32 images take 1.7 times as much

# A batch of whole networks is so many times smaller than one of a single layer's candidates. Each has its own weights,
# so that only what operations cost beside their arithmetic is saved (measured on one core: two or three of the embedded
# models side by side take 1.1 to 1.3 times as long as one by one, many networks of 17 tokens 0.7 to 0.8 times).
_SHARE = 4


class Score(NamedTuple):
    """L^F = L^C2 + L^O of a candidate, lower is better, and L^O alone."""

    fitness: float
    output: float


@dataclass(frozen=True)
class _Known:
    """One candidate up to a block: that block's output, and L^C2 summed over all pieces until there."""

    output: Tensor
    contrast: float


class NetworkFitness:
    """Scores vectors on the images at hand, within `with fitness.runner`.

    Block outputs of candidates that were run are kept, the last used ones, and found by all that they depend on: genes
    of the layers before them and widths of the activations there. Candidates of the same widths are run side by side
    where that pays.

    Args:
        fitness: the losses.
        working: the quantized model under search; has genes of several vectors after scoring.
        graph: the float model's trace.
        blocks_alone: sum L^C2 over transformer blocks only.
        whole: L^O counts.
    """

    def __init__(self, fitness: Fitness, working: Working, graph: Trace, *, blocks_alone: bool, whole: bool) -> None:
        self._f = fitness
        self._w = working
        self._whole = whole
        self._counted = [s for s in fitness.segments if s.is_block or not blocks_alone]
        self.layers = tuple(site for segment in fitness.segments for site in segment.layers)
        self._place = places(graph, fitness.blocks)
        self._largest = max(prod(op.shape) // TRACED_IMAGES for op in graph.ops if op.batched)
        self._blind = [i for i, site in enumerate(self.layers) if not fitness.runner.sees_images(site)]
        self._mixed = len(working.widths) > 1
        self._own = [self._place(site.op) for site in self.layers]
        # Layers of each block and the gap before it.
        self._until = [[i for i, (index, _) in enumerate(self._own) if index == b] for b in range(len(fitness.blocks))]
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._bytes = 0

    def forget(self) -> None:
        """Other images or activation ranges from now on."""
        self._known.clear()
        self._bytes = 0

    @torch.no_grad()
    def scores(self, vectors: Sequence[Vector]) -> list[Score]:
        """Fitness of each of `vectors`; equal ones are run once."""
        alike: dict[Hashable, list[Vector]] = {}
        for vector in dict.fromkeys(vectors):
            common = tuple(gene.bits for gene in vector), tuple(vector[i] for i in self._blind)
            alike.setdefault(common, []).append(vector)
        found: dict[Vector, Score] = {}
        count = at_once(self._f.images.device, _SHARE * self._largest * len(self._f.images))
        for group in alike.values():
            activations = self._activations(group[0])
            keyed = [(self._keys(vector, activations), vector) for vector in group]
            keyed.sort(key=lambda pair: self._shared(pair[0]))  # those of the same start side by side
            for start in range(0, len(keyed), count):
                found.update(self._run(keyed[start : start + count]))
        self._f.evaluated += len(found)
        return [found[vector] for vector in vectors]

    def _use(self, vector: Vector, shared: int) -> None:
        """Take the vector's weights, but for layers in the first blocks, which are not run."""
        skipped = 0 if self._mixed else shared  # of all layers come the activations' widths
        self._w.set(
            {
                site.parameter: gene
                for site, gene, (index, is_block) in zip(self.layers, vector, self._own, strict=True)
                if not is_block or index >= skipped
            }
        )
        self._f.runner.reload()

    def _run(self, part: Sequence[tuple[list[Hashable], Vector]]) -> dict[Vector, Score]:
        vectors = [vector for _, vector in part]
        shared = min(self._shared(keys) for keys, _ in part)
        before = [[self._take(key) for key in keys[:shared]] for keys, _ in part]
        self._use(vectors[0], shared)
        weights = {
            site: self._w.weights(site.parameter, [vector[i] for vector in vectors])
            for i, site in enumerate(self.layers)
            if len({vector[i] for vector in vectors}) > 1 and (not self._own[i][1] or self._own[i][0] >= shared)
        }
        known = [torch.cat([entry[i].output for entry in before]) for i in range(shared)]  # a copy also of one
        final, inputs, outputs = self._f.runner.suffix(known, len(part), weights)
        sums = [entry[-1].contrast if entry else 0.0 for entry in before]
        segments = iter([s for s in self._counted if _order((s.index, s.is_block)) >= 2 * shared])
        segment = next(segments, None)
        for i in range(shared, len(outputs)):
            while segment is not None and _order((segment.index, segment.is_block)) <= 2 * i + 1:
                sums = self._added(sums, segment, final, inputs, outputs)
                segment = next(segments, None)
            for (keys, _), output, value in zip(part, split(outputs[i], len(part)), sums, strict=True):
                self._keep(keys[i], _Known(output.clone() if len(part) > 1 else output, value))
        if segment is not None:  # the tail
            sums = self._added(sums, segment, final, inputs, outputs)
        losses = [self._f.distance(single) for single in split(final, len(part))]
        return {
            vector: Score(value + loss if self._whole else value, loss)
            for vector, value, loss in zip(vectors, sums, losses, strict=True)
        }

    def _added(
        self, sums: Sequence[float], segment: Segment, final: object, inputs: list[Tensor], outputs: list[Tensor]
    ) -> list[float]:
        values = self._f.local(segment, self._f.passed(segment, final, inputs, outputs)).tolist()
        return [value + more for value, more in zip(sums, values, strict=True)]

    # --- what is known --------------------------------------------------------------------------------------------

    def _keys(self, vector: Vector, activations: Sequence[Hashable]) -> list[Hashable]:
        """For every block, what its output depends on."""
        keys: list[Hashable] = []
        key: Hashable = ()
        for layers, widths in zip(self._until, activations, strict=True):
            key = key, tuple(vector[i] for i in layers), widths
            keys.append(key)
        return keys

    def _activations(self, vector: Vector) -> list[Hashable]:
        """Widths of the activations up to each block from the one before; none where they are always the same."""
        found: list[list[int]] = [[] for _ in self._f.blocks]
        if self._mixed:
            self._use(vector, 0)
            for site in self._w.quantized.sites.activations:
                index, _ = self._place(site.op)
                if index < len(found):
                    found[index].append(site.bits)
        return [tuple(widths) for widths in found]

    def _shared(self, keys: Sequence[Hashable]) -> int:
        """How many of the first blocks have a known output."""
        return next((i for i, key in enumerate(keys) if key not in self._known), len(keys))

    def _take(self, key: Hashable) -> _Known:
        self._known.move_to_end(key)
        return self._known[key]

    def _keep(self, key: Hashable, known: _Known) -> None:
        if key not in self._known:
            self._bytes += known.output.nbytes
        self._known[key] = known
        self._known.move_to_end(key)
        while self._bytes > _HELD and len(self._known) > 1:
            self._bytes -= self._known.popitem(last=False)[1].output.nbytes


def _order(place: tuple[int, bool]) -> int:
    """Gap i is number 2i, block i, which follows it, 2i + 1."""
    index, is_block = place
    return 2 * index + is_block
