"""CLAMP-ViT: synthesis and search, alternating."""

from __future__ import annotations

from torch import Tensor

from harness.contracts import CalibrationData, QuantizedModel, RunContext, VisionModel
from harness.spec import BitSpec
from methods.clamp.info import SOURCE, SearchStage
from methods.clamp.search import Search
from methods.clamp.synthesis import Stage1, weight_only
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.sites import Sites, find_sites
from methods.core.trace import trace


class Clamp:
    """CLAMP-ViT at fixed precision, a reconstruction: `methods.clamp.info` lists what is inferred.

    Stage 1 makes images against the weight-quantized model; activation ranges are min-max on them; then each of
    `passes` passes evolves all layers' scales and, but for the last, refreshes the images and ranges against the
    model as quantized so far.
    """

    def __init__(self, options: SearchStage) -> None:
        self.options = options

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Quantize `model`; `calib` is not used."""
        o = self.options
        graph = trace(model.net, model.input_shape)
        sites = find_sites(graph, scheme, spec)
        stage1 = Stage1(model, graph, o, ctx)
        # The same identity as the source `clamp` alone, so that `clamp` and `clamp+minmax` share their images.
        stage1_options = {k: v for k, v in o.model_dump(mode="json").items() if k in SOURCE.options.model_fields}
        identity = {"source": "clamp", "options": stage1_options, "bits": str(spec), "scheme": scheme}

        def synthesize() -> Tensor:
            return stage1.optimise(
                stage1.start(), weight_only(model, sites), rounds=o.rounds, steps=o.steps, name="synthesize"
            )

        images = ctx.cached_images(identity, synthesize)
        with ctx.stage("calibrate"):
            quantized = self._calibrated(model, images, sites)
        search = Search(model, graph, quantized, o, ctx)
        for number in range(o.passes):
            with ctx.stage("search"):
                search.run_pass(images, number)
            if o.refresh_steps and number + 1 < o.passes:
                with ctx.stage("refresh"):
                    images = stage1.optimise(
                        images, quantized, rounds=1, steps=o.refresh_steps, name=f"refresh-{number}"
                    )
                    quantized.set_activations(activation_quantizers(sites, observe(model, images, sites, MinMax, 32)))
        ctx.keep_images(images)
        ctx.count(images=len(images), candidates=search.evaluated)
        ctx.diagnostics("search", {"passes": search.history, "multipliers": search.multipliers()})
        return quantized

    @staticmethod
    def _calibrated(model: VisionModel, images: Tensor, sites: Sites) -> Quantized:
        activations = activation_quantizers(sites, observe(model, images, sites, MinMax, 32))
        return Quantized(model.net, sites, weight_quantizers(model, sites, symmetric=False), activations)
