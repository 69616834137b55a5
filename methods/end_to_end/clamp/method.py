"""CLAMP-ViT: synthesis and search, alternating."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.api.compose import images_of
from harness.api.contracts import CalibrationData, QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.calibrator import SEARCHES, finished, unfit
from methods.calibrators.clamp_search.working import State, Working
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.end_to_end.clamp.held_out import held_out_images, nearer
from methods.end_to_end.clamp.info import ClampOptions
from methods.sources.clamp.info import INFO as SOURCE
from methods.sources.clamp.info import SynthesisStage
from methods.sources.clamp.source import ClampImages, Stage1


class Clamp:
    """CLAMP-ViT, a reconstruction: `methods.end_to_end.clamp.info` lists what is inferred.

    Stage 1 makes images against the weight-quantized model; activation ranges are taken on them; then each of `passes`
    passes evolves all layers, and images and ranges are refreshed against the model as quantized so far: between
    passes, within every layer's cycles, or never. What comes out is kept if held-out images say that it is nearer to
    the float model than what went in.
    """

    def __init__(self, options: ClampOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """A budget below the narrowest width cannot be met; softmax outputs have their bits from scheme matmul."""
        return unfit(spec, scheme, self.options)

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Quantize `model`; `calib` is not used."""
        o = self.options
        graph = trace(model)
        stage1 = Stage1(model, graph, o, ctx)
        # The source's own options and identity, so that `clamp` and `clamp+minmax` share their images.
        options = SynthesisStage(**{k: v for k, v in o.model_dump().items() if k in SynthesisStage.model_fields})
        sites = find_sites(graph, scheme, spec, softmax_bits=o.softmax_bits)
        images = images_of(
            SOURCE,
            options,
            ClampImages(options),
            model,
            spec=spec,
            scheme=scheme,
            ctx=ctx,
            make=lambda: stage1.first_images(graph, scheme, spec),
        )
        judges = held_out_images(o.held_out, o, model, spec=spec, scheme=scheme, ctx=ctx)
        with ctx.stage("calibrate"):
            working = Working(model, sites, spec, o, images)
        refreshed = 0

        def refresh(images: Tensor) -> Tensor:
            nonlocal refreshed
            with ctx.stage("refresh"):
                name = f"refresh-{refreshed}"
                refreshed += 1
                # Within layers' cycles there are hundreds.
                curve = o.refresh == "pass"
                return stage1.optimise(
                    images, working.quantized, rounds=1, steps=o.refresh_steps, name=name, curve=curve
                )

        with ctx.stage("search"):
            within = refresh if o.refresh == "cycles" else None
            search = SEARCHES[o.search](model, graph, working, spec, o, ctx, images, within)
            start = working.state
            for number in range(o.passes):
                search.run_pass(number)
                if o.refresh == "pass" and number + 1 < o.passes:
                    search.renew(refresh)
        final = search.images
        if judges:
            with ctx.stage("held-out"):
                if not self.keeps(model, working, start, judges, ctx):
                    final = images
        ctx.keep_images(final)
        return finished(search, working, ctx)

    def keeps(
        self, model: VisionModel, working: Working, start: State, judges: Mapping[str, Tensor], ctx: RunContext
    ) -> bool:
        """Whether the search's result is kept, by held-out images; if not, `working` is as at the `start` again."""
        return nearer(model, working, start, judges, ctx)
