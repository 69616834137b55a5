"""FDD's image source."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

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
from methods.sources.fdd.info import FddOptions
from methods.sources.fdd.spectrum import band_mask, filtered


def phase(options: FddOptions, step: int) -> tuple[int, bool]:
    """Index of the bands that `step` (from 0, over all rounds) works on, and whether on the low one."""
    round_, within = divmod(step, options.steps)
    stage = math.ceil((round_ + 1) * len(options.bands) / options.rounds) - 1
    return stage, within < options.low_share * options.steps


class Fdd(OfFloatModel):
    """PSAQ-ViT's losses on band-passed images, from low to high: L = L_PSE + L_OH + 0.05 L_TV on a low band, and
    (1 - w) L_OH + w D(prediction, prediction on the low band) for L_OH on a high one (FDD, its code).

    Deviations are listed in `methods.sources.fdd.info`.
    """

    def __init__(self, options: FddOptions) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape): those that were filtered, with all their frequencies."""
        o = self.options
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels"))
        generator = ctx.generator("augmentation")
        tv_target = variation_target(o, generator)
        graph = trace(model)
        contexts = [block.context for block in find_blocks(graph)]
        found: dict[tuple[OpKey, int], Tensor] = {}
        black, white = model.pixel_bounds()
        size = model.input_shape[1:]
        low_bands = [band_mask(*size, 0.0, low).to(model.device) for low, _, _ in o.bands]
        high_bands = [band_mask(*size, begin, end).to(model.device) for _, end, begin in o.bands]
        done = 0

        def loss(batch: Tensor) -> Tensor:
            nonlocal done
            stage, is_low = phase(o, done)
            done += 1
            # The masks are radial, so filtering after rolling and mirroring is the same as before.
            low = filtered(batch, low_bands[stage], black, white)
            distils = not is_low and o.distillation > 0
            reference = self._reference(model, low) if distils and o.entropy_band == "input" else None
            seen = low if is_low else filtered(batch, high_bands[stage], black, white)
            output = model.net(seen)
            value = o.class_weight * model.target_loss(output, targets)
            if distils:
                if o.entropy_band == "low":
                    reference = pytree.tree_map_only(Tensor, Tensor.detach, model.net(low))
                value = (1.0 - o.distillation) * value + o.distillation * model.output_distance(output, reference)
            various = diversity([found[point] for point in contexts], len(batch), o.bandwidth, o.grid)
            return value + o.tv_weight * variation_loss(seen, tv_target) - various

        with Interceptor(model.net, tap_transforms(contexts, found)):
            return synthesize(
                model,
                loss,
                o,
                lr=learning_rate(o, graph),
                generator=generator,
                ctx=ctx,
            )

    @staticmethod
    @torch.no_grad()
    def _reference(model: VisionModel, low: Tensor) -> Any:
        return model.net(low)
