"""Evol-Q (ICCV 2023) as a calibrator: FQ-ViT's quantizers, then a search over attention's weight scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.evolq.info import EvolqOptions
from methods.calibrators.evolq.search import Fitness, check_images, evolve, mutated
from methods.core.graph.structure import Block, find_blocks
from methods.core.graph.trace import Trace, trace
from methods.core.integer.calibrator import FqVit
from methods.core.numerics.quantizers import Uniform
from methods.core.quantized import Quantized


@dataclass(frozen=True)
class MomentMatched(Uniform):
    """Per-channel weight quantizer whose rounded channels get the mean and standard deviation of the float ones.

    It maps codes affinely, so there are no more values than codes, but zero need not be one of them.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Round a weight and restore the moments of its channels."""
        assert self.axis is not None
        first = x.movedim(self.axis, 0)
        float_channels, channels = (w.flatten(1) for w in (first, super().__call__(x).movedim(self.axis, 0)))
        smallest = torch.finfo(x.dtype).tiny
        ratio = float_channels.std(1, keepdim=True) / channels.std(1, keepdim=True).clamp(min=smallest)
        # A channel rounded to one value has no deviation to restore.
        ratio = torch.where(channels.amax(1, keepdim=True) > channels.amin(1, keepdim=True), ratio, 1.0)
        centred = (channels - channels.mean(1, keepdim=True)) * ratio
        return (centred + float_channels.mean(1, keepdim=True)).view_as(first).movedim(0, self.axis)


class EvolQ:
    """The calibrator. It takes no gradient: a candidate's loss on the calibration images decides, and nothing else."""

    def __init__(self, options: EvolqOptions) -> None:
        self.options = options

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Quantizers of FQ-ViT's calibrator on `images` (n, c, h, w), some of whose weight scales then evolve."""
        o = self.options
        check_images(images)
        quantized = FqVit(o).calibrate(model, images, spec=spec, scheme=scheme, ctx=ctx)
        assert isinstance(quantized, Quantized)
        if o.moments:
            for name in list(quantized.weights):
                q = quantized.grid(name)
                quantized.set_weight(name, MomentMatched(q.scale, q.zero_point, q.qmin, q.qmax, q.granularity))
        graph = trace(model)
        blocks = find_blocks(graph)
        layers = [searched_layers(graph, block, whole=o.searched == "block") for block in blocks]
        fitness = Fitness(
            model, quantized, graph, blocks, images, batch=o.fitness_batch, temperature=o.temperature
        )  # fmt: skip
        self._search(quantized, layers, fitness, self._epsilon(spec), ctx)
        ctx.count(candidates=fitness.evaluated)
        return quantized

    def _epsilon(self, spec: BitSpec) -> float:
        if self.options.epsilon is not None:
            return self.options.epsilon
        return 1e-4 if spec.weight == 8 else 1e-3

    def _search(
        self,
        quantized: Quantized,
        layers: Sequence[Sequence[str]],
        fitness: Fitness,
        epsilon: float,
        ctx: RunContext,
    ) -> None:
        """Passes over the blocks from last to first; `layers` has the names of each block's searched weights."""
        o = self.options
        generator = ctx.generator("evolq")

        def mutate(scales: Tensor) -> Tensor:
            return mutated(scales, epsilon, relative=o.epsilon_units == "relative", generator=generator)

        def measure_at(place: int) -> Callable[[Tensor], float]:
            def measure(scales: Tensor) -> float:
                set_scales(quantized, layers[place], scales)
                return fitness.value(place)

            return measure

        losses: list[float] = []
        for number in range(o.passes):
            fitness.renew()
            if not losses:
                losses.append(fitness.value())
            value = losses[-1]
            for done, place in enumerate(reversed(range(len(layers))), start=1):
                if not layers[place]:
                    continue
                best, value = evolve(
                    scales_of(quantized, layers[place]),
                    value,
                    measure_at(place),
                    mutate,
                    population=o.population,
                    sample=o.sample,
                    cycles=o.cycles,
                    generator=generator,
                )
                set_scales(quantized, layers[place], best)
                ctx.progress("evolve", (number + done / len(layers)) / o.passes)
            losses.append(value)
        ctx.diagnostics("evolq-loss", {"passes": [round(loss, 6) for loss in losses]})


def searched_layers(graph: Trace, block: Block, *, whole: bool) -> list[str]:
    """Weights of the block's linear layers before attention joins the residual sum, or with `whole` of all of them."""
    position = {op.key: i for i, op in enumerate(graph.ops)}
    end = position[block.output if whole else block.branch[0]]
    found = [
        op.weight
        for op in graph.of_kind("linear")
        if op.weight is not None
        and graph.inside(op.key)
        and f"{op.key.module}.".startswith(f"{block.path}.")
        and position[op.key] <= end
    ]
    return list(dict.fromkeys(found))


def scales_of(quantized: Quantized, names: Sequence[str]) -> Tensor:
    """Scales of all output channels of the weights `names`, one after another."""
    return torch.cat([quantized.grid(name).scale for name in names])


def set_scales(quantized: Quantized, names: Sequence[str], scales: Tensor) -> None:
    """Round the weights `names` with `scales`, in the order of `scales_of`; zero points stay."""
    quantizers = [quantized.grid(name) for name in names]
    parts = scales.split([len(quantizer.scale) for quantizer in quantizers])
    for name, quantizer, part in zip(names, quantizers, parts, strict=True):
        quantized.set_weight(name, replace(quantizer, scale=part))
