"""The quantized model beside the float one, and how far apart they look."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.attention import Attention, patch_attention
from methods.core.graph.intercept import OpKey
from methods.core.graph.sites import Sites
from methods.core.numerics.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.synthesis.anchors import tapped
from methods.sources.maskaq.info import MaskaqOptions
from methods.sources.maskaq.terms import attention_mask, masked_difference

Found = dict[tuple[OpKey, int], Tensor]


class Alignment:
    """L_align of MaskAQ, a call a step: the float model's attention against the quantized one's, where it looks.

    Args:
        model: the float model.
        sites: what the quantized one quantizes.
        layers: whose attention is compared.
        options: see `MaskaqOptions`.
        generator: drops patches of masks.
    """

    def __init__(
        self,
        model: VisionModel,
        sites: Sites,
        layers: list[Attention],
        options: MaskaqOptions,
        generator: torch.Generator,
    ) -> None:
        self._model, self._sites, self._options, self._generator = model, sites, options, generator
        self._quantized = Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=True), None)
        self._points = [layer.products for layer in layers]
        # Layers whose maps have one shape share a mask.
        self._groups = [list(same) for _, same in groupby(layers, key=lambda a: (a.windows, a.grid, a.prefix))]
        self._steps, self._done = options.rounds * options.steps, 0
        self._renewed = {part * self._steps // options.ranges for part in range(options.ranges)}

    def __call__(self, batch: Tensor, found: Mapping[tuple[OpKey, int], Tensor]) -> Tensor:
        """The loss, a scalar, where the float model has just seen `batch` and left its products in `found`."""
        o = self._options
        if self._done in self._renewed:
            observers = observe(self._model, batch, self._sites, MinMax, len(batch))
            self._quantized.set_activations(activation_quantizers(self._sites, observers))
        ours: Found = {}
        tapped(self._quantized, self._points, ours, gradient=True)(batch)
        share = o.mask_start + (o.mask_end - o.mask_start) * self._done / self._steps
        self._done += 1
        terms = []
        for group in self._groups:
            looks = [patch_attention(found[layer.products], layer).mean(1) for layer in group]
            mask = attention_mask(torch.stack(looks).mean(0), share, o.mask_drop, self._generator)
            for layer, own in zip(group, looks, strict=True):
                terms.append(masked_difference(own, patch_attention(ours[layer.products], layer).mean(1), mask))
        return torch.stack(terms).mean()
