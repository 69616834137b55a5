"""PSAQ-ViT's image source."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace
from methods.core.synthesis.descent import (
    learning_rate,
    synthesize,
    variation_loss,
    variation_target,
)
from methods.core.synthesis.precision import OfFloatModel
from methods.core.synthesis.similarity import diversity
from methods.core.synthesis.targets import absolute_error
from methods.sources.psaq.info import PsaqSourceOptions


class Psaq(OfFloatModel):
    """Images that maximise the entropy of patch similarities: L = L_PSE + L_OH + 0.05 L_TV (PSAQ-ViT, equation 10).

    Deviations are listed in `methods.sources.psaq.info`.
    """

    def __init__(self, options: PsaqSourceOptions) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        o = self.options
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels")) if o.class_weight else None
        generator = ctx.generator("augmentation")
        tv_target = variation_target(o, generator)
        graph = trace(model)
        contexts = [block.context for block in find_blocks(graph)]
        found: dict[tuple[OpKey, int], Tensor] = {}
        target_loss = model.target_loss if o.output_target == "class" else absolute_error

        def loss(batch: Tensor) -> Tensor:
            output = model.net(batch)
            task = o.class_weight * target_loss(output, targets) if o.class_weight else 0.0
            various = diversity([found[point] for point in contexts], len(batch), o.bandwidth, o.grid)
            return task + o.tv_weight * variation_loss(batch, tv_target) - various

        with Interceptor(model.net, tap_transforms(contexts, found)):
            return synthesize(
                model,
                loss,
                o,
                lr=learning_rate(o, graph),
                generator=generator,
                ctx=ctx,
            )
