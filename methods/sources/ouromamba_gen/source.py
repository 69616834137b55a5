"""OuroMamba's images: patches whose implicit attention contrasts with that of their neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.contrast import patch_contrast
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.operations import SCAN
from methods.core.graph.structure import find_scan_blocks
from methods.core.graph.trace import trace
from methods.core.synthesis.descent import start_images, synthesize
from methods.core.synthesis.precision import OfFloatModel
from methods.core.synthesis.targets import absolute_error
from methods.sources.ouromamba_gen.attention import find_layout, patched_attention, scan_points
from methods.sources.ouromamba_gen.info import OuroMambaGenOptions

_READ = [SCAN.index(name) for name in ("delta", "a", "b", "c")]


class OuroMambaImages(OfFloatModel):
    """L = L_C + L_O. A reconstruction: see `info`."""

    def __init__(self, options: OuroMambaGenOptions) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        o = self.options
        graph = trace(model)
        blocks = find_scan_blocks(graph)
        layout = find_layout(model.net, graph, blocks[0], start_images(model, 2, ctx))
        scans = scan_points(blocks, both=layout.both)
        targets = model.sample_targets(o.images, ctx.generator("pseudo-labels"))
        output_loss = absolute_error if o.output_target == "mae" else model.target_loss
        found: dict[tuple[OpKey, int], Tensor] = {}

        def loss(batch: Tensor) -> Tensor:
            value = o.output_weight * output_loss(model.net(batch), targets)
            if not o.contrast_weight:
                return value
            terms = []
            for scan in scans:
                inputs = [found[scan, slot] for slot in _READ]
                maps = patched_attention(*inputs, layout=layout, side=o.neighbourhood, by_step=o.mixing == "steps")
                terms.append(
                    patch_contrast(
                        maps, maps, o.temperature, o.positives, neighbourhood=o.neighbourhood, gradient="both"
                    )
                )
            return value + o.contrast_weight * torch.stack(terms).mean()

        with Interceptor(model.net, tap_transforms([(scan, slot) for scan in scans for slot in _READ], found)):
            return synthesize(model, loss, o, lr=o.lr, generator=ctx.generator("augmentation"), ctx=ctx)
