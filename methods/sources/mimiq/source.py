"""MimiQ's image source."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.attention import between_patches, find_attention
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.trace import trace
from methods.core.synthesis.heads import disturbed_descent, head_dissimilarity
from methods.core.synthesis.options import HeadOptions
from methods.core.synthesis.precision import OfFloatModel


class Mimiq(OfFloatModel):
    """Images whose heads attend alike: L = L_heads + L_CE + 2.5e-5 TV. A reconstruction: see `info`."""

    def __init__(self, options: HeadOptions) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        o = self.options
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels"))
        layers = [a for a in find_attention(trace(model)) if a.heads > 1]
        points = [a.products if o.maps == "products" else a.weights for a in layers]
        found: dict[tuple[OpKey, int], Tensor] = {}

        def loss(batch: Tensor) -> Tensor:
            value = o.class_weight * model.target_loss(model.net(batch), targets)
            terms = [
                head_dissimilarity(between_patches(found[point], layer))
                for layer, point in zip(layers, points, strict=True)
            ]
            return value + o.similarity_weight * torch.stack(terms).mean() if terms else value

        with Interceptor(model.net, tap_transforms(points, found)):
            return disturbed_descent(model, loss, o, ctx)
