"""SARDFQ's image source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.attention import Attention, find_attention, patch_attention
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.trace import trace
from methods.core.synthesis.descent import (
    learning_rate,
    synthesize,
    variation_loss,
    variation_target,
)
from methods.core.synthesis.precision import OfFloatModel
from methods.sources.sardfq.info import SardfqOptions
from methods.sources.sardfq.labels import soft_labels
from methods.sources.sardfq.priors import block_weights, gaussian_mixtures, prior_distance
from methods.sources.sardfq.regions import Regions, random_regions

REFERENCE_PATCHES = 14 * 14  # the number of patches that the prior weight belongs to


class Sardfq(OfFloatModel):
    """Images with random attention priors and several semantics: L = a L_APA + L_SL + 0.05 L_TV, L_SL of whole images
    and of their regions (SARDFQ). A reconstruction: see `methods.sources.sardfq.info`.
    """

    def __init__(self, options: SardfqOptions) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        o = self.options
        generator = ctx.generator("augmentation")
        tv_target = variation_target(o, generator)
        graph = trace(model)
        aligned = self._priors(find_attention(graph), model, ctx.generator("attention-priors"))
        regions = self._regions(model, ctx.generator("regions"))
        image_loss, region_loss = self._task_losses(model, regions, ctx)
        points = [attention.weights for attention, _, _ in aligned]
        found: dict[tuple[OpKey, int], Tensor] = {}

        def loss(batch: Tensor) -> Tensor:
            value = o.tv_weight * variation_loss(batch, tv_target)
            if regions is not None:
                value = value + region_loss(model.net(regions.resized(batch)))
            # After the regions, so that the attention at hand is that of whole images.
            value = value + image_loss(model.net(batch))
            for attention, prior, weight in aligned:
                value = value + weight * prior_distance(patch_attention(found[attention.weights], attention), prior)
            return value

        with Interceptor(model.net, tap_transforms(points, found)):
            return synthesize(
                model,
                loss,
                o,
                lr=learning_rate(o, graph),
                generator=generator,
                ctx=ctx,
                mirror=0.0,
            )

    def _priors(
        self, layers: list[Attention], model: VisionModel, generator: torch.Generator
    ) -> list[tuple[Attention, Tensor, float]]:
        """Aligned blocks' attention, a prior (rows, heads, patches) for each, and its weight."""
        o = self.options
        found = []
        for attention, depth in zip(layers, block_weights(len(layers)), strict=True):
            patches = attention.grid[0] * attention.grid[1]
            weight = o.prior_weight * depth * (patches / REFERENCE_PATCHES) ** 2
            if weight == 0:
                continue
            shape = (o.images * attention.windows, attention.heads, patches)
            maps = gaussian_mixtures(
                shape[0] * shape[1], attention.grid, o.components, (o.narrowest, o.widest), generator
            )
            found.append((attention, maps.reshape(shape).to(model.device), weight))
        return found

    def _regions(self, model: VisionModel, generator: torch.Generator) -> Regions | None:
        o = self.options
        if o.regions == 0:
            return None
        _, height, width = model.input_shape
        return random_regions(o.images, (height, width), o.regions, o.smallest, generator)

    def _task_losses(
        self, model: VisionModel, regions: Regions | None, ctx: RunContext
    ) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
        """Losses of the network's output for whole images and for regions, against soft labels where there are
        classes.
        """
        o = self.options
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels"))
        count = 0 if regions is None else len(regions)
        others = model.sample_targets(count, ctx.generator("pseudo-labels", "regions")) if count else None
        if o.labels == "hard" or not _are_classes(targets):
            return (lambda out: model.target_loss(out, targets)), (lambda out: model.target_loss(out, others))
        raised = functional.one_hot(targets, model.num_classes)
        if o.image_label == "all" and regions is not None:
            raised[regions.owner.to(raised.device), others] = 1
        generator = ctx.generator("soft-labels")
        spread = (o.label_low, o.label_high)
        whole = soft_labels(raised, *spread, generator)
        if others is None:
            return (lambda out: functional.cross_entropy(out, whole)), (lambda _: whole.new_zeros(()))
        own = functional.one_hot(others, model.num_classes)
        parts = soft_labels(own, *spread, generator)
        return (lambda out: functional.cross_entropy(out, whole)), (lambda out: functional.cross_entropy(out, parts))


def _are_classes(targets: Any) -> bool:
    """Whether targets are one class per image, rather than a dense task's boxes or label maps."""
    return isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
