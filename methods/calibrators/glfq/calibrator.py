"""GLF-Q as a walk of the reconstruction engine, perhaps on a network whose GELUs have become ReLUs."""

from __future__ import annotations

from torch import Tensor, nn

from harness.api.contracts import RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.glfq.info import GlfqOptions
from methods.calibrators.glfq.mlp import find_mlps, with_relu
from methods.core.graph.trace import Trace, trace
from methods.core.reconstruction.calibrator import Reconstruction
from methods.core.reconstruction.engine import LossChoice, Phase


class Glfq(Reconstruction):
    """The calibrator."""

    options: GlfqOptions

    def __init__(self, options: GlfqOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Where GELUs are to be replaced there must be some."""
        if self.options.mlp == "relu" and not find_mlps(model.net, trace(model)):
            return (
                "glfq replaces the GELU of MLPs, and no module of the network is one between two layers of its own and "
                "nothing else; use mlp=gelu"
            )
        return None

    def student(self, model: VisionModel, graph: Trace, images: Tensor, ctx: RunContext) -> nn.Module:
        """With ReLUs, if the options say so."""
        o = self.options
        return model.net if o.mlp == "gelu" else with_relu(model.net, graph, images, o, ctx)

    def phases(self) -> dict[str, Phase]:
        """One walk."""
        o = self.options
        phase = Phase(
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
        return {"joint": phase}
