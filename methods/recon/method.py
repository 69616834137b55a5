"""AdaRound, BRECQ, QDrop, APHQ-ViT and FIMA-Q as phases of the reconstruction engine."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from harness.contracts import QuantizedModel, RunContext, VisionModel
from harness.spec import BitSpec
from methods.core.calibrate import activation_quantizers, observe
from methods.core.observers import OBSERVERS
from methods.core.quantized import Quantized
from methods.core.sites import find_sites
from methods.core.trace import trace_of
from methods.recon.engine import Engine, LossChoice, Phase
from methods.recon.info import AdaroundOptions, BrecqOptions, DropOptions, LossOptions, RoundingOptions
from methods.recon.ranges import start
from methods.recon.rounding import Annealing

_OBSERVED_AT_ONCE = 32


class _Reconstruction(ABC):
    """Ranges from one float pass and the weights themselves, then the phases."""

    options: RoundingOptions

    @abstractmethod
    def phases(self) -> dict[str, Phase]:
        """Walks over the network, by name, in order."""

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Learn the quantizers of all sites of `scheme` on `images` (n, c, h, w)."""
        o = self.options
        graph = trace_of(model)
        sites = find_sites(graph, scheme, spec)
        observers = observe(model, images, sites, OBSERVERS[o.activation_ranges], _OBSERVED_AT_ONCE)
        parameters = dict(model.net.named_parameters())
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
        quantized = Quantized(model.net, sites, grids, activation_quantizers(sites, observers))
        engine = Engine(model, graph, quantized, images, ctx)
        for name, phase in self.phases().items():
            engine.run(phase)
            engine.report(name)
        return quantized

    def _rounding_phase(self, **more: object) -> Phase:
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


class Adaround(_Reconstruction):
    """Rounding alone, layer by layer or block by block."""

    options: AdaroundOptions

    def __init__(self, options: AdaroundOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """One walk."""
        o = self.options
        return {"rounding": self._rounding_phase(layerwise=o.unit == "layer", activations=o.activations == "quantized")}


class Brecq(_Reconstruction):
    """Rounding with activations in float, then activation scales with the rounded weights."""

    options: BrecqOptions

    def __init__(self, options: BrecqOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """Two walks, or one if scales are not learned."""
        o = self.options
        phases = {"rounding": self._rounding_phase(activations=False, loss=_loss(o))}
        if o.scale_steps:
            phases["scales"] = Phase(
                steps=o.scale_steps,
                batch=o.batch,
                inputs=o.scale_inputs,
                weights=None,
                loss=LossChoice(norm=o.scale_norm),
                scale_lr=o.scale_lr,
                relative=o.scale_units == "relative",
            )
        return phases


class Qdrop(_Reconstruction):
    """Rounding and activation scales together, activation quantization dropped at random; APHQ-ViT and FIMA-Q are
    this with other losses.
    """

    options: DropOptions

    def __init__(self, options: DropOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """One walk."""
        o = self.options
        return {
            "joint": self._rounding_phase(
                drop=o.drop, scale_lr=o.scale_lr, relative=o.scale_units == "relative", loss=_loss(o)
            )
        }


def _loss(o: LossOptions) -> LossChoice:
    return LossChoice(
        o.loss,
        temperature=o.temperature,
        perturbation=o.perturbation,
        perturbed=o.perturbed,
        refreshes=o.refreshes,
        low_rank=o.low_rank,
    )
