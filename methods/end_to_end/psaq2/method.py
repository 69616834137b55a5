"""PSAQ-ViT V2: images and the quantized model's weights, each trained against the other in turns."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api.compose import images_of
from harness.api.contracts import CalibrationData, QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import Trace, trace
from methods.core.quantized import Quantized
from methods.core.synthesis.descent import optimise_images, variation_loss, variation_target
from methods.core.synthesis.similarity import diversity
from methods.end_to_end.psaq2.info import Psaq2Options
from methods.end_to_end.psaq2.student import Student
from methods.sources.psaq.info import INFO as SOURCE
from methods.sources.psaq.info import PsaqSourceOptions
from methods.sources.psaq.source import Psaq


class Psaq2:
    """PSAQ-ViT V2, a reconstruction: `methods.end_to_end.psaq2.info` lists what is inferred, which is most of it.

    First images are PSAQ-ViT's, without a class loss. Each round then changes them to be harder for the student, as
    long as their patches stay diverse, and the student to be right on them. No task's labels or losses are used.
    """

    def __init__(self, options: Psaq2Options) -> None:
        self.options = options

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Quantize `model`; `calib` is not used."""
        o = self.options
        graph = trace(model)
        images = self._first_images(model, spec, scheme, ctx)
        student = Student(model, graph, find_sites(graph, scheme, spec), o, ctx)
        for number in range(o.alternations):
            with ctx.stage("refresh"):
                quantized = student.quantized(images)
                images = self._harder(model, graph, student, quantized, images, name=f"refresh-{number}", ctx=ctx)
            with ctx.stage("train"):
                ctx.progress("train", number / o.alternations)
                student.train(images)
        with ctx.stage("calibrate"):
            quantized = student.quantized(images)
        ctx.keep_images(images)
        every = max(1, len(student.losses) // 50)
        values = [round(value, 6) for value in student.losses[::every]]
        ctx.diagnostics("student_loss", {"every": every, "values": values})
        ctx.count(images=len(images))
        return quantized

    def _first_images(self, model: VisionModel, spec: BitSpec, scheme: str, ctx: RunContext) -> Tensor:
        """PSAQ-ViT's, cached as its own: they depend on neither bits nor scheme."""
        known = PsaqSourceOptions.model_fields
        shared = {name: value for name, value in self.options.model_dump().items() if name in known}
        options = PsaqSourceOptions(**shared, class_weight=0.0)
        return images_of(SOURCE, options, Psaq(options), model, spec=spec, scheme=scheme, ctx=ctx)

    def _harder(
        self,
        model: VisionModel,
        graph: Trace,
        student: Student,
        quantized: Quantized,
        images: Tensor,
        *,
        name: str,
        ctx: RunContext,
    ) -> Tensor:
        """Descend L_PSE + L_TV - bounded discrepancy of the student, which stays, from `images` (n, c, h, w)."""
        o = self.options
        tv_target = variation_target(o, ctx.generator("augmentation"))  # the first images'
        contexts = [block.context for block in find_blocks(graph)]
        found: dict[tuple[OpKey, int], Tensor] = {}
        with torch.no_grad():
            start = student.distance(quantized(images), model.net(images)).clamp(min=torch.finfo(images.dtype).tiny)

        def loss(batch: Tensor) -> Tensor:
            with Interceptor(model.net, tap_transforms(contexts, found)):
                output = model.net(batch)
            various = diversity([found[point] for point in contexts], len(batch), o.bandwidth, o.grid)
            value = o.tv_weight * variation_loss(batch, tv_target) - various
            if o.discrepancy_weight:
                multiple = student.distance(quantized(batch), output) / start
                value = value - o.discrepancy_weight * bounded(multiple, o.discrepancy_bound, o.bound_form)
            return value

        return optimise_images(
            model,
            images,
            loss,
            o,
            name=name,
            lr=o.image_lr,
            rounds=1,
            steps=o.image_steps,
            generator=ctx.generator("augmentation", name),
            ctx=ctx,
        )


def bounded(multiple: Tensor, bound: float, form: str) -> Tensor:
    """min(r, b) (`clip`), or b (1 - exp(-r / b)) (`saturate`): never more than b, so that images gain nothing from a
    discrepancy that only adversarial ones have.
    """
    if form == "clip":
        return multiple.clamp(max=bound)
    return bound * -torch.expm1(-multiple / bound)
