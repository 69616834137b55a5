"""CLAMP-ViT stage 1: images whose float patches contrast with the quantized model's."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.contracts import CalibrationData, RunContext, VisionModel
from harness.api.spec import MAX_BITS, BitSpec
from methods.core.calibrate import weight_quantizers
from methods.core.contrast import patch_contrast
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey, tap_transforms
from methods.core.graph.outputs import tensor_pairs
from methods.core.graph.sites import Sites, find_sites
from methods.core.graph.structure import find_blocks, patch_grid, to_grid
from methods.core.graph.trace import Trace, trace
from methods.core.quantized import Quantized
from methods.core.synthesis.anchors import tapped
from methods.core.synthesis.descent import learning_rate, optimise_images, start_images, variation_loss
from methods.core.synthesis.targets import absolute_error
from methods.sources.clamp.info import SynthesisStage


def weight_only(model: VisionModel, sites: Sites) -> Quantized:
    """The quantized model of the first round: asymmetric min-max weights per channel, activations in float."""
    return Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=False), None)


def first_precision(spec: BitSpec) -> BitSpec:
    """Of the first quantized model: the same for all precisions with the same whole number of weight bits."""
    return BitSpec(int(spec.weight), MAX_BITS)


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
        blocks = find_blocks(graph)
        self._grid = patch_grid(graph)
        self._taps = [b.branch if options.tap == "attention" else (b.output, OUTPUT) for b in blocks]
        self._targets = model.sample_targets(options.images, ctx.generator("pseudo-labels"))

    def first_images(self, graph: Trace, scheme: str, spec: BitSpec) -> Tensor:
        """Images of the first round: from noise, against the model with quantized weights and float activations."""
        o = self._options
        start = start_images(self._model, o.images, self._ctx)
        anchor = weight_only(self._model, find_sites(graph, scheme, first_precision(spec)))
        return self.optimise(start, anchor, rounds=o.rounds, steps=o.steps, name="synthesize")

    def optimise(
        self, images: Tensor, quantized: Quantized, *, rounds: int, steps: int, name: str, curve: bool = True
    ) -> Tensor:
        """Descend L^C1 + L^O (+ TV) from `images`; `name` separates the random augmentation of repeated calls, `curve`
        keeps the losses with the record.
        """
        o, model = self._options, self._model
        float_taps: dict[tuple[OpKey, int], Tensor] = {}
        anchor_taps: dict[tuple[OpKey, int], Tensor] = {}
        # By default without a gradient: the figure draws none through the quantized model.
        anchor = tapped(quantized, self._taps, anchor_taps, gradient=o.gradient != "float")

        def loss(batch: Tensor) -> Tensor:
            quantized_output = anchor(batch)
            with Interceptor(model.net, tap_transforms(self._taps, float_taps)):
                output = model.net(batch)
            layers = [
                patch_contrast(
                    anchors,
                    to_grid(float_taps[point], self._grid),
                    o.temperature,
                    o.positives,
                    neighbourhood=o.neighbourhood,
                    form=o.contrast,
                    colocated=o.colocated,
                    gradient=o.gradient,
                )
                for point in self._taps
                # A grid of one patch (a last Swin stage of small images) has no neighbours.
                if (anchors := to_grid(anchor_taps[point], self._grid)).shape[1:3] != (1, 1)
            ]
            if not layers:
                raise ValueError("no block of the network has a patch with neighbours to contrast; use larger images")
            if o.output_target == "class":
                task = model.target_loss(output, self._targets)
            elif o.output_target == "mae":
                task = absolute_error(output, self._targets)
            else:
                task = torch.stack([(a - b).abs().mean() for a, b in tensor_pairs(output, quantized_output)]).mean()
            value = torch.stack(layers).mean() + o.output_weight * task
            if o.tv_weight:
                value = value + o.tv_weight * variation_loss(batch, o.tv_target)
            return value

        return optimise_images(
            model,
            images,
            loss,
            o,
            name=name,
            curve=curve,
            lr=self._lr,
            rounds=rounds,
            steps=steps,
            generator=self._ctx.generator("augmentation", name),
            ctx=self._ctx,
        )


class ClampImages:
    """Stage 1 alone, to be joined with any calibrator. A reconstruction: see `methods.end_to_end.clamp.info`."""

    def __init__(self, options: SynthesisStage) -> None:
        self.options = options

    def precision(self, spec: BitSpec, scheme: str) -> str:
        """Only the weights of the first quantized model are rounded, in every scheme alike."""
        return str(first_precision(spec))

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Synthesized normalised images (n, *input_shape)."""
        graph = trace(model)
        return Stage1(model, graph, self.options, ctx).first_images(graph, scheme, spec)
