"""The reconstruction engine: unit by unit, learn quantizer parameters that bring its output back to the float model's.

Only what the unit at hand learns (rounding variables, or weights; activation scales) gets gradients. The float model's
weights are read, never written; the copy in `Quantized` gets its final weights when a unit is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from methods.core.graph.intercept import Transform
from methods.core.graph.segments import Segment, cut
from methods.core.graph.sites import Point
from methods.core.graph.structure import find_pieces
from methods.core.graph.trace import Trace
from methods.core.numerics.granularity import PER_TENSOR
from methods.core.numerics.quantizers import Quantizer, Uniform
from methods.core.quantized import Quantized
from methods.core.reconstruction.features import Features, GlobalLocal
from methods.core.reconstruction.least_squares import LeastSquares
from methods.core.reconstruction.losses import (
    FIRST,
    Divergence,
    Fisher,
    Hessian,
    Loss,
    LowRank,
    PowerError,
    squared_error,
)
from methods.core.reconstruction.rounding import Annealing, regularizer
from methods.core.reconstruction.scales import Scales, mixed
from methods.core.reconstruction.sensitivity import gradients
from methods.core.reconstruction.tuning import Learned, learned
from methods.core.reconstruction.units import LayerUnit, SegmentUnit, Unit
from methods.core.reconstruction.walk import Inputs, Walk

_AT_ONCE = 32  # images where no step is taken
_MIXED = 0.5  # share of float values in mixed inputs (QDrop)


@dataclass(frozen=True)
class LossChoice:
    """Which loss, and its options: see `LossOptions`; `global-local`, `global` and `local` are those of GLF-Q."""

    name: str = "mse"
    norm: float = 2.0
    temperature: float = 1.0
    perturbation: float = 1e-2
    perturbed: str = "signs"
    refreshes: int = 1
    low_rank: str = "code"
    rank_one: str = "aligned"
    local: float = 2.0


@dataclass(frozen=True)
class Phase:
    """One walk over all units.

    `weights`, what is learned of them: their `rounding`, up or down; their values, without rounding (`float`) or behind
    it (`codes`); or nothing. `weight_lr` stays, or falls to 0 as half a cosine (`weight_cosine`). `activations`: they
    are quantized meanwhile, before and within the unit. `scale_lr` 0 leaves their scales alone.
    """

    steps: int
    batch: int
    inputs: str
    layerwise: bool = False
    weights: Literal["rounding", "float", "codes"] | None = "rounding"
    weight_lr: float = 1e-3
    weight_cosine: bool = False
    regularization: float = 0.0
    annealing: Annealing | None = None
    activations: bool = True
    scale_lr: float = 0.0
    relative: bool = False
    drop: float = 0.0
    loss: LossChoice = LossChoice()


@dataclass(frozen=True)
class _Learning:
    """What a unit learns, and the weights that it computes with meanwhile."""

    values: Mapping[str, Learned]
    scales: Scales
    weights: dict[str, Tensor]


class Engine:
    """Reconstructs a quantized model on calibration images; `run` may be called for several phases.

    Args:
        model: the float model.
        graph: its trace.
        quantized: the model as it starts, with all quantizers; it is changed.
        images: calibration images (n, c, h, w).
        ctx: random numbers, counters and progress.
        weights: float weights by name where learning starts; without them, the float model's.
    """

    def __init__(
        self,
        model: VisionModel,
        graph: Trace,
        quantized: Quantized,
        images: Tensor,
        ctx: RunContext,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._graph = graph
        self._quantized = quantized
        self._grids = {name: q for name, q in quantized.weights.items() if isinstance(q, Uniform)}  # as they start
        self._images = images
        self._ctx = ctx
        self._float = dict(model.net.named_parameters()) if weights is None else weights
        self._blocks = find_pieces(graph)
        self._generator = ctx.generator("reconstruction")
        # Masks are as large as the activations: drawn on the device that they are for.
        seed = int(torch.randint(2**62, (), generator=self._generator))
        self._masks = torch.Generator(images.device).manual_seed(seed)
        self.errors: dict[str, tuple[float, float]] = {}

    def run(self, phase: Phase) -> None:
        """Walk over all units once. `errors` then has each one's squared error before and after, at full quantization
        as far as the phase has it.
        """
        self.errors = {}
        self._floats = Walk(self._model.net, self._blocks, self._images, _AT_ONCE)
        self._quants = Walk(self._quantized.net, self._blocks, self._images, _AT_ONCE)
        wanted = phase.loss.name in ("global-local", "global")
        self._features = Features(self._floats, self._graph) if wanted else None
        self._left = dict.fromkeys(self._activations() if phase.activations else {})  # points that no unit had yet
        segments = cut(self._graph, self._blocks, self._quantized.sites.weights)
        for number, segment in enumerate(segments):
            self._ctx.progress(f"reconstruct {number + 1}/{len(segments)}", number / len(segments))
            for unit, own in self._units(segment, phase):
                self._learn(unit, own, phase)

    def report(self, name: str) -> None:
        """Keep the errors of the last walk, called `name`, with the record."""
        self._ctx.diagnostics(
            f"reconstruction-{name}",
            {
                "units": list(self.errors),
                "before": [round(before, 6) for before, _ in self.errors.values()],
                "after": [round(after, 6) for _, after in self.errors.values()],
            },
        )

    def _activations(self) -> Mapping[Point, Quantizer]:
        assert self._quantized.activations is not None, "the engine starts from a model with all quantizers"
        return self._quantized.activations

    def _transforms(self, phase: Phase) -> dict[Point, Transform]:
        return dict(self._activations()) if phase.activations else {}

    def _units(self, segment: Segment, phase: Phase) -> Iterator[tuple[Unit, list[Point]]]:
        """The segment's units with the activation sites that each one learns, made as the one before is done."""
        whole = SegmentUnit(self._floats, self._quants, segment, self._graph, self._transforms(phase))
        own = whole.points(self._left) if self._left else []
        for point in own:
            del self._left[point]
        if not phase.layerwise:
            yield whole, own
            return
        for site in segment.layers:
            transforms = self._transforms(phase)
            yield LayerUnit(whole, self._floats, self._quants, site, graph=self._graph, transforms=transforms), []

    def _learn(self, unit: Unit, own: list[Point], phase: Phase) -> None:
        values = learned(phase.weights, {name: self._float[name] for name in unit.names}, self._grids)
        quantizers = {point: self._activations()[point] for point in own}
        scales = Scales(
            # Others (per channel, logarithmic) have no scale to learn; they are as they are.
            {point: q for point, q in quantizers.items() if type(q) is Uniform and q.granularity == PER_TENSOR},
            relative=phase.relative,
            drop=phase.drop,
            generator=self._masks,
        )
        learning = _Learning(values, scales, {})
        with unit.session({**self._transforms(phase), **scales.transforms()}, learning.weights):
            before = self._error(unit)
            self._optimise(unit, phase, learning, self._loss(unit, phase))
        for name, value in values.items():
            self._quantized.set_weight(name, value.hard())
        self._quantized.set_activations({**self._activations(), **scales.hard()})
        with unit.session(self._transforms(phase), {}):
            self.errors[unit.name] = before, self._error(unit)
        self._ctx.count(reconstruction_steps=phase.steps, reconstructed_units=1)

    def _optimise(self, unit: Unit, phase: Phase, learning: _Learning, loss: Loss) -> None:
        values, scales = learning.values, learning.scales
        groups = [{"params": [value.v for value in values.values()], "lr": phase.weight_lr}] if values else []
        with_scales = phase.scale_lr > 0 and scales.values.numel() > 0
        if with_scales:
            groups.append({"params": [scales.values.requires_grad_()], "lr": phase.scale_lr})
        if not groups:
            return
        optimiser = torch.optim.Adam(groups)

        for step in range(phase.steps):
            scales.renew()
            learning.weights.update({name: value.soft() for name, value in values.items()})
            scales.dropping = False
            loss.renew(step)
            scales.dropping = True
            index = torch.randperm(len(self._images), generator=self._generator)[: phase.batch].to(self._images.device)
            outputs = unit.outputs(self._batch(unit, phase, index), index)
            value = loss(outputs, [x[index] for x in unit.targets], index)
            beta = phase.annealing.beta(step) if phase.annealing else None
            if beta is not None and phase.regularization:
                value = value + phase.regularization * sum(regularizer(x.v, beta) for x in values.values())
            left = 0.5 * (1.0 + math.cos(math.pi * step / phase.steps))
            if values and phase.weight_cosine:
                optimiser.param_groups[0]["lr"] = phase.weight_lr * left
            if with_scales:
                optimiser.param_groups[-1]["lr"] = phase.scale_lr * left
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            if with_scales:
                scales.keep_positive()

    def _batch(self, unit: Unit, phase: Phase, index: Tensor) -> Inputs:
        """Inputs for a step."""
        if phase.inputs == "float":
            return [x[index] for x in unit.float_inputs]
        if phase.inputs == "quantized":
            return [x[index] for x in unit.inputs]
        pairs = zip(unit.inputs, unit.float_inputs, strict=True)
        return [mixed(a[index], b[index], _MIXED, self._masks) for a, b in pairs]

    def _direction(self, x: Tensor, kind: str) -> Tensor:
        """What `x` is perturbed by: 1 or -1 at random for every value, or 1 everywhere."""
        if kind == "ones":
            return torch.ones_like(x)
        signs = torch.randint(0, 2, x.shape, generator=self._generator) * 2 - 1
        return signs.to(x)

    @torch.no_grad()
    def _values(self, unit: Unit) -> list[Tensor]:
        """The unit's outputs for all images, on quantized inputs; within its session."""
        return self._quants.batched(lambda numbers, *parts: unit.outputs(list(parts), numbers), unit.inputs)

    def _error(self, unit: Unit) -> float:
        return float(squared_error(self._values(unit), unit.targets, unit.axis))

    def _loss(self, unit: Unit, phase: Phase) -> Loss:
        choice = phase.loss
        if choice.name == "mse":
            return PowerError(unit.axis, choice.norm)
        assert isinstance(unit, SegmentUnit), "layers have no gradients of the output loss"
        if choice.name in ("global-local", "global", "local"):
            return self._feature_loss(unit, choice)
        return self._weighted_loss(unit, phase)

    def _weighted_loss(self, unit: SegmentUnit, phase: Phase) -> Loss:
        """Those that gradients of the output loss weigh."""
        choice = phase.loss
        if choice.name != "fisher" and self._floats.is_tail(unit.segment) and [x.dim() for x in unit.targets] == [2]:
            # Of logits, as in APHQ-ViT's and FIMA-Q's code; what is scaled in the blocks is here, too.
            return Divergence(FIRST if choice.name in ("hessian", "least-squares") else None)

        def at(values: list[Tensor], walk: Walk) -> list[Tensor]:
            before = walk.outputs[: unit.segment.index]
            return gradients(
                self._model, self._floats, unit.segment, values, outputs=before, temperature=choice.temperature
            )

        if choice.name == "fisher":
            return Fisher(at(self._values(unit), self._quants), unit.axis)
        if choice.name == "hessian":
            shifts = [choice.perturbation * self._direction(x, choice.perturbed) for x in unit.targets]
            above = at([x + d for x, d in zip(unit.targets, shifts, strict=True)], self._floats)
            below = at([x - d for x, d in zip(unit.targets, shifts, strict=True)], self._floats)
            return Hessian(above, below)

        def measure() -> tuple[list[Tensor], list[Tensor]]:
            values = self._values(unit)
            differences = [a - b for a, b in zip(values, unit.targets, strict=True)]
            return differences, at(values, self._quants)

        if choice.name == "least-squares":
            return LeastSquares(measure, choice.rank_one)
        return LowRank(measure, math.ceil(phase.steps / choice.refreshes), choice.low_rank)

    def _feature_loss(self, unit: SegmentUnit, choice: LossChoice) -> Loss:
        """Behind the tail there are no features: its own output is left."""
        features = self._features
        if features is None or self._floats.is_tail(unit.segment):
            return GlobalLocal(None, (), choice.local)
        before = self._quants.outputs[: unit.segment.index]

        def after(outputs: Sequence[Tensor], index: Tensor) -> list[Tensor]:
            (output,) = outputs
            return features.after(unit.segment, output, index, before)

        return GlobalLocal(after, features.targets, choice.local if choice.name == "global-local" else 0.0)
