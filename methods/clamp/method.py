"""CLAMP-ViT: synthesis and search, alternating; and the search alone."""

from __future__ import annotations

from torch import Tensor

from harness.contracts import CalibrationData, QuantizedModel, RunContext, VisionModel, images_of
from harness.spec import BitSpec
from methods.clamp.info import SOURCE, ClampOptions, SearchStage
from methods.clamp.search import Search
from methods.clamp.synthesis import ClampImages, Stage1
from methods.clamp.working import Working
from methods.core.sites import find_sites
from methods.core.trace import trace_of


class Clamp:
    """CLAMP-ViT, a reconstruction: `methods.clamp.info` lists what is inferred.

    Stage 1 makes images against the weight-quantized model; activation ranges are taken on them; then each of `passes`
    passes evolves all layers, and images and ranges are refreshed against the model as quantized so far: between
    passes, within every layer's cycles, or never.
    """

    def __init__(self, options: ClampOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """A budget below the narrowest width cannot be met; softmax outputs have their bits from scheme matmul."""
        return _unfit(spec, scheme, self.options)

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Quantize `model`; `calib` is not used."""
        o = self.options
        graph = trace_of(model)
        stage1 = Stage1(model, graph, o, ctx)
        # The source's own options and identity, so that `clamp` and `clamp+minmax` share their images.
        options = SOURCE.options(**{k: v for k, v in o.model_dump().items() if k in SOURCE.options.model_fields})
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
            search = Search(model, graph, working, spec, o, ctx, images, refresh if o.refresh == "cycles" else None)
            for number in range(o.passes):
                search.run_pass(number)
                if o.refresh == "pass" and number + 1 < o.passes:
                    search.renew(refresh)
        ctx.keep_images(search.images)
        return _finished(search, working, ctx)


class ClampSearch:
    """Stage 2 alone, on the images of any source, which stay as they are."""

    def __init__(self, options: SearchStage) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """A budget below the narrowest width cannot be met; softmax outputs have their bits from scheme matmul."""
        return _unfit(spec, scheme, self.options)

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Ranges on `images` (n, c, h, w), then the passes."""
        o = self.options
        graph = trace_of(model)
        working = Working(model, find_sites(graph, scheme, spec, softmax_bits=o.softmax_bits), spec, o, images)
        with ctx.stage("search"):
            search = Search(model, graph, working, spec, o, ctx, images)
            for number in range(o.passes):
                search.run_pass(number)
        return _finished(search, working, ctx)


def _unfit(spec: BitSpec, scheme: str, options: SearchStage) -> str | None:
    least = options.widths[0]
    if options.softmax_bits is not None and scheme != "full":
        return f"softmax_bits is for scheme full; in {scheme} softmax outputs have the activations' bits"
    if not spec.mixed or spec.weight >= least:
        return None
    return f"{spec} cannot be met with weights of {least} bits or more; allow narrower ones (option widths)"


def _finished(search: Search, working: Working, ctx: RunContext) -> QuantizedModel:
    ctx.count(images=len(search.images), candidates=search.evaluated)
    ctx.diagnostics("search", search.diagnostics())
    return working.quantized
