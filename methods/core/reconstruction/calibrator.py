"""Calibrators as phases of the reconstruction engine: what all share, and the joint walk of QDrop and its kin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.observers import OBSERVERS
from methods.core.quantized import Quantized
from methods.core.reconstruction.engine import Engine, LossChoice, Phase
from methods.core.reconstruction.options import DropOptions, LossOptions, RoundingOptions, WalkOptions
from methods.core.reconstruction.ranges import start
from methods.core.reconstruction.rounding import Annealing

_OBSERVED_AT_ONCE = 32


class Reconstruction(ABC):
    """Ranges from one float pass and the weights themselves, then the phases."""

    options: WalkOptions

    @abstractmethod
    def phases(self) -> dict[str, Phase]:
        """Walks over the network, by name, in order."""

    def student(self, model: VisionModel, graph: Trace, images: Tensor, ctx: RunContext) -> nn.Module:
        """The float network whose weights are quantized; targets are those of the model's."""
        return model.net

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Learn the quantizers of all sites of `scheme` on `images` (n, c, h, w)."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        student = self.student(model, graph, images, ctx)
        observed = replace(model, net=student)
        observers = observe(observed, images, sites, OBSERVERS[o.activation_ranges], _OBSERVED_AT_ONCE)
        parameters = dict(student.named_parameters())
        grids = {
            s.parameter: start(
                parameters[s.parameter],
                s.bits,
                symmetric=o.weights == "symmetric",
                ranges=o.weight_ranges,
                norm=o.weight_norm,
                axis=s.axis,
            )
            for s in sites.weights
        }
        quantized = Quantized(student, sites, grids, activation_quantizers(sites, observers))
        # Targets and what is behind a unit are the model's; learning starts at the student's weights.
        engine = Engine(model, graph, quantized, images, ctx, weights=parameters)
        for name, phase in self.phases().items():
            engine.run(phase)
            engine.report(name)
        return quantized


class Rounding(Reconstruction):
    """One that learns whether weights are rounded up or down."""

    options: RoundingOptions

    def rounding_phase(self, **more: Any) -> Phase:
        """A walk that learns rounding; `more` are fields of `Phase`."""
        o = self.options
        return Phase(
            steps=o.steps,
            batch=o.batch,
            inputs=o.inputs,
            weight_lr=o.rounding_lr,
            regularization=o.regularization,
            annealing=Annealing(o.steps, o.warmup, o.beta_start, o.beta_end, o.annealing),
            **more,
        )


class Joint(Rounding):
    """Rounding and activation scales together, activation quantization dropped at random; APHQ-ViT, FIMA-Q
    and LS-ViT are this with other losses.
    """

    options: DropOptions

    def __init__(self, options: DropOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """One walk."""
        o = self.options
        return {
            "joint": self.rounding_phase(
                drop=o.drop, scale_lr=o.scale_lr, relative=o.scale_units == "relative", loss=self.loss()
            )
        }

    def loss(self) -> LossChoice:
        """The walk's loss."""
        return loss_choice(self.options)


def loss_choice(o: LossOptions) -> LossChoice:
    """The loss that the options name."""
    return LossChoice(
        o.loss,
        temperature=o.temperature,
        perturbation=o.perturbation,
        perturbed=o.perturbed,
        refreshes=o.refreshes,
        low_rank=o.low_rank,
    )
