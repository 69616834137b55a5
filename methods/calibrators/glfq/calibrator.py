"""GLF-Q as a walk of the reconstruction engine, perhaps on a network whose GELUs have become ReLUs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.glfq.info import GlfqOptions
from methods.calibrators.glfq.mlp import find_mlps, with_relu
from methods.core.calibrate import activation_quantizers, observe
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import OBSERVERS
from methods.core.quantized import Quantized
from methods.core.reconstruction.engine import Engine, LossChoice, Phase
from methods.core.reconstruction.ranges import start


class Glfq:
    """The calibrator."""

    def __init__(self, options: GlfqOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Where GELUs are to be replaced there must be some."""
        if self.options.mlp == "relu" and not find_mlps(model.net, trace(model)):
            return (
                "glfq replaces the GELU of MLPs, and no module of the network is one between two layers; use mlp=gelu"
            )
        return None

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Train weights and activation scales on `images` (n, c, h, w), block by block."""
        o = self.options
        graph = trace(model)
        sites = find_sites(graph, scheme, spec)
        student = model.net if o.mlp == "gelu" else with_relu(model.net, graph, images, o, ctx)
        observers = observe(replace(model, net=student), images, sites, OBSERVERS[o.activation_ranges], o.batch)
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
        # Targets and what is behind a block are the float model's; learning starts at the student's weights.
        engine = Engine(model, graph, quantized, images, ctx, weights=parameters)
        engine.run(self._phase())
        engine.report("joint")
        return quantized

    def _phase(self) -> Phase:
        o = self.options
        return Phase(
            steps=o.steps,
            batch=o.batch,
            inputs=o.inputs,
            weights="codes",
            weight_lr=o.weight_lr,
            weight_cosine=True,
            scale_lr=o.scale_lr,
            relative=o.scale_units == "relative",
            loss=LossChoice(o.loss, local=o.local),
        )
