"""Fitness of candidates in CLAMP-ViT's search: L^F = L^C2 + L^O, from cached pieces of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.working import Working
from methods.core.contrast import output_contrast
from methods.core.graph.outputs import split, tensor_pairs
from methods.core.graph.segments import Segment, channel_axis, cut, reaching_back
from methods.core.graph.sites import WeightSite
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import Trace
from methods.core.segment_runner import SegmentRunner, float_outputs


class Fitness:
    """Losses of the quantized model under search on the images at hand.

    The float model's outputs are computed once per image set. While `runner` is open (`with fitness.runner:`), segments
    are run from their cached inputs; see `SegmentRunner` for when caches have to be renewed.

    Args:
        model: the float model.
        graph: its trace.
        working: the quantized model under search.
        options: see `SearchStage`.
        images: calibration images (n, c, h, w).
    """

    runner: SegmentRunner
    images: Tensor

    def __init__(
        self, model: VisionModel, graph: Trace, working: Working, options: SearchStage, images: Tensor
    ) -> None:
        self._model = model
        self._graph = graph
        self._w = working
        self._o = options
        self.blocks = find_blocks(graph)
        sites = working.quantized.sites
        self.segments = cut(graph, self.blocks, sites.weights)
        self._reaching_back = reaching_back(graph, self.blocks, sites)
        self.evaluated = 0  # candidates
        self.use(images)

    def use(self, images: Tensor) -> None:
        """Measure on other images from now on; activation ranges are the caller's to renew before."""
        self.images = images
        self._inputs, self._outputs, self._final = float_outputs(self._model.net, self.blocks, images)
        self.runner = SegmentRunner(self._w.quantized, self._graph, self.blocks, ImageSet.whole(images))

    def reference(self, segment: Segment) -> Any:
        """The float model's output of the segment."""
        return self.passed(segment, self._final, self._inputs, self._outputs)

    def local(self, segment: Segment, output: Any) -> Tensor:
        """Weighted L^C2 of k candidates' segment outputs, batch k * n: (k,), the mean over the output's tensors."""
        tail = segment.is_tail(len(self.blocks))
        values = [
            output_contrast(
                a.movedim(channel_axis(a, tail=tail), -1),
                b.movedim(channel_axis(b, tail=tail), -1),
                self._o.search_temperature,
                pooling=self._o.pooling,
                form=self._o.local_loss,
                anchors=self._o.anchors,
                negatives=self._o.negatives,
                centred=self._o.centred,
            )
            for a, b in tensor_pairs(output, self.reference(segment))
        ]
        return torch.stack(values).mean(0) * self._o.local_weight

    def contrast(self, segment: Segment, output: Any) -> float:
        """L^C2 of the model as it is, whose segment gives `output`: of that, and of later segments if they count."""
        value = float(self.local(segment, output))
        return value + self._beyond(segment, output, whole=False) if self._o.local_scope == "later" else value

    def _beyond(self, segment: Segment, output: Any, *, whole: bool) -> float:
        """L^C2 of the segments behind one with `output` if they count, and L^O of the `whole` model if that does."""
        if self._o.local_scope == "own":
            return self.distance(self.runner.logits(segment, output))
        final, inputs, outputs = self.runner.onward(segment, output)
        total = 0.0
        for later in self.segments[self.segments.index(segment) + 1 :]:
            total += float(self.local(later, self.passed(later, final, inputs, outputs)))
        return total + self.distance(final) if whole else total

    def passed(self, segment: Segment, final: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """The segment's output in a run that had these inputs and outputs of blocks, and gave `final`."""
        if segment.is_block:
            return outputs[segment.index]
        return inputs[segment.index] if segment.index < len(inputs) else final

    def distance(self, output: Any) -> float:
        """L^O of the whole model's output."""
        if self._o.output_distance == "l1":
            differences = [(a - b).abs().mean() for a, b in tensor_pairs(output, self._final)]
            return float(torch.stack(differences).mean())
        return float(self._model.output_distance(output, self._final))

    @torch.no_grad()
    def whole_loss(self) -> float:
        """L^O of the model as it is."""
        return self.distance(self._w.quantized(self.images))

    def values(self, segment: Segment, site: WeightSite, genes: Sequence[Gene]) -> list[float]:
        """L^C2 of genes, with L^O if every candidate's counts, activation widths as they are."""
        found: list[float] = []
        count = self.runner.at_once(site)
        for start in range(0, len(genes), count):
            part = genes[start : start + count]
            output = self.runner.candidates(segment, site, self._w.weights(site.parameter, part))
            values = self.local(segment, output).tolist()
            whole = self._o.output_loss == "candidate"
            if whole or self._o.local_scope == "later":
                singles = split(output, len(part))
                values = [
                    v + self._beyond(segment, single, whole=whole) for v, single in zip(values, singles, strict=True)
                ]
            found += values
        self.evaluated += len(genes)
        return found

    def locals(self, segments: Sequence[Segment]) -> float:
        """Sum of the local losses of `segments`, given in execution order, and of all later ones if they count."""
        if self._o.local_scope == "later":
            segments = self.segments[self.segments.index(segments[0]) :]
        total = 0.0
        for segment in segments:
            self.runner.enter(segment)
            total += float(self.local(segment, self.runner.run(segment)))
        return total

    def whole_loss_within(self) -> float:
        """The same while segments are being run."""
        tail = Segment(len(self.blocks), False, ())
        self.runner.enter(tail)
        return self.distance(self.runner.run(tail))

    def renew_activations(self, segment: Segment, name: str) -> None:
        """Take up the activation widths that go with the layer, also of earlier segments if there are any."""
        if name in self._reaching_back:
            self.runner.restart()
            self.runner.enter(segment)
        else:
            self.runner.reload()
