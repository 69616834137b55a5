"""MaskAQ's image source."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import MAX_BITS, BitSpec
from methods.core.graph.attention import between_patches, find_attention
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import windowed
from methods.core.graph.trace import trace
from methods.core.synthesis.heads import disturbed_descent, head_dissimilarity
from methods.sources.maskaq.alignment import Alignment
from methods.sources.maskaq.info import MaskaqOptions
from methods.sources.maskaq.terms import attention_entropies


def whole(spec: BitSpec) -> BitSpec:
    """The precision of the quantized model: the cell's, in mixed precision the budget's whole bits."""
    return BitSpec(int(spec.weight), spec.activation or MAX_BITS)


class Maskaq:
    """Images on which a quantized model attends as the float one does, where that looks: MimiQ's loss, L_fb and 0.1
    L_align (MaskAQ). Deviations are listed in `methods.sources.maskaq.info`.
    """

    def __init__(self, options: MaskaqOptions) -> None:
        self.options = options

    def precision(self, spec: BitSpec, scheme: str) -> str:
        """Bits and scheme of the quantized model, if one takes part."""
        return f"{whole(spec)} {scheme}" if self.options.align_weight else ""

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        o = self.options
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels"))
        graph = trace(model)
        layers = find_attention(graph)
        compared = [a for a in layers if a.heads > 1]
        maps = {a: a.products if o.maps == "products" else a.weights for a in compared}
        found: dict[tuple[OpKey, int], Tensor] = {}
        taps = tap_transforms(list(dict.fromkeys((*maps.values(), *(a.products for a in layers)))), found)
        generator = ctx.generator("attention")
        aligns = o.align_weight > 0 and (o.align_windows or not windowed(graph))
        sites = find_sites(graph, scheme, whole(spec))
        align = Alignment(model, sites, layers, o, generator) if aligns else None

        def loss(batch: Tensor) -> Tensor:
            # Entered for this pass alone: the alignment runs the same network for its ranges.
            with Interceptor(model.net, taps):
                output = model.net(batch)
            value = o.class_weight * model.target_loss(output, targets)
            if compared and o.similarity_weight:
                terms = [head_dissimilarity(between_patches(found[point], a)) for a, point in maps.items()]
                value = value + o.similarity_weight * torch.stack(terms).mean()
            if o.entropy_weight:
                seen = [between_patches(found[a.products], a) for a in layers]
                entropies = [attention_entropies(each, o.rows, generator) for each in seen]
                value = value - o.entropy_weight * torch.cat(entropies).mean()
            return value if align is None else value + o.align_weight * align(batch, found)

        return disturbed_descent(model, loss, o, ctx)
