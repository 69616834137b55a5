"""CLAMP-ViT stage 1: images whose float patches contrast with the quantized model's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.contracts import CalibrationData, RunContext, VisionModel
from harness.spec import BitSpec
from methods.clamp.contrast import patch_contrast
from methods.clamp.info import SynthesisStage
from methods.core.calibrate import weight_quantizers
from methods.core.intercept import Interceptor, OpKey, tap_transforms
from methods.core.quantized import Quantized
from methods.core.sites import Sites, find_sites
from methods.core.structure import find_blocks, patch_grid, to_grid
from methods.core.synthesis import learning_rate, optimise_images, variation_loss
from methods.core.trace import Trace, trace


def weight_only(model: VisionModel, sites: Sites) -> Quantized:
    """The quantized model of the first round: asymmetric min-max weights per channel, activations in float."""
    return Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=False), None)


class Stage1:
    """Makes and refreshes images for one model.

    Args:
        model: the float model.
        graph: its trace.
        options: see `SynthesisStage`.
        ctx: the run's context; pseudo-labels and noise depend on the repetition only.
    """

    def __init__(self, model: VisionModel, graph: Trace, options: SynthesisStage, ctx: RunContext) -> None:
        self._model = model
        self._options = options
        self._ctx = ctx
        self._lr = learning_rate(options, graph)
        self._grid = patch_grid(graph)
        self._taps = [block.branch for block in find_blocks(graph)]
        self._targets = model.sample_targets(options.images, ctx.generator("pseudo-labels"))

    def start(self) -> Tensor:
        """Gaussian noise images, the same as every other source starts from."""
        shape = (self._options.images, *self._model.input_shape)
        return torch.randn(shape, generator=self._ctx.generator("calibration-images")).to(self._model.device)

    def optimise(self, images: Tensor, quantized: Quantized, *, rounds: int, steps: int, name: str) -> Tensor:
        """Descend L^C1 + L^O (+ TV) from `images`; `name` separates the random augmentation of repeated calls."""
        o, model = self._options, self._model
        float_taps: dict[tuple[OpKey, int], Tensor] = {}
        anchor_taps: dict[tuple[OpKey, int], Tensor] = {}
        anchor = self._anchors(quantized, anchor_taps)

        def loss(batch: Tensor) -> Tensor:
            anchor(batch)
            with Interceptor(model.net, tap_transforms(self._taps, float_taps)):
                output = model.net(batch)
            layers = [
                patch_contrast(
                    to_grid(anchor_taps[point], self._grid),
                    to_grid(float_taps[point], self._grid),
                    o.temperature,
                    o.positives,
                )
                for point in self._taps
            ]
            value = torch.stack(layers).mean() + o.output_weight * model.target_loss(output, self._targets)
            if o.tv_weight:
                value = value + o.tv_weight * variation_loss(batch, o.tv_target)
            return value

        return optimise_images(
            model,
            images,
            loss,
            o,
            name=name,
            lr=self._lr,
            rounds=rounds,
            steps=steps,
            generator=self._ctx.generator("augmentation", name),
            ctx=self._ctx,
        )

    def _anchors(self, quantized: Quantized, found: dict[tuple[OpKey, int], Tensor]) -> Callable[[Tensor], None]:
        """Run the quantized model for its taps only: the figure draws no gradient through it."""
        with_taps = {**tap_transforms(self._taps, found)}
        for point, quantizer in (quantized.activations or {}).items():
            tap = with_taps.get(point)
            with_taps[point] = quantizer if tap is None else lambda x, q=quantizer, t=tap: t(q(x))

        @torch.no_grad()
        def run(batch: Tensor) -> None:
            with Interceptor(quantized.net, with_taps):
                quantized.net(batch)

        return run


class ClampImages:
    """Stage 1 alone, to be joined with any calibrator. A reconstruction: see `methods.clamp.info`."""

    uses_bits = True

    def __init__(self, options: SynthesisStage) -> None:
        self.options = options

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        graph = trace(model.net, model.input_shape)
        stage = Stage1(model, graph, self.options, ctx)
        quantized = weight_only(model, find_sites(graph, scheme, spec))
        o = self.options
        return stage.optimise(stage.start(), quantized, rounds=o.rounds, steps=o.steps, name="synthesize")
