"""CLAMP-ViT's search alone."""

from __future__ import annotations

from torch import Tensor

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.network import NetworkSearch
from methods.calibrators.clamp_search.search import Search
from methods.calibrators.clamp_search.working import Working
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace

AnySearch = Search | NetworkSearch
SEARCHES: dict[str, type[AnySearch]] = {"layer": Search, "network": NetworkSearch}  # by option `search`


class ClampSearch:
    """Stage 2 alone, on the images of any source, which stay as they are."""

    def __init__(self, options: SearchStage) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """A budget below the narrowest width cannot be met; softmax outputs have their bits from scheme matmul."""
        return unfit(spec, scheme, self.options)

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Ranges on `images` (n, c, h, w), then the passes."""
        o = self.options
        graph = trace(model)
        working = Working(model, find_sites(graph, scheme, spec, softmax_bits=o.softmax_bits), spec, o, images)
        with ctx.stage("search"):
            search = SEARCHES[o.search](model, graph, working, spec, o, ctx, images)
            for number in range(o.passes):
                search.run_pass(number)
        return finished(search, working, ctx)


def unfit(spec: BitSpec, scheme: str, options: SearchStage) -> str | None:
    """Why precision and scheme cannot be met with these options, or None."""
    least = options.widths[0]
    if options.softmax_bits is not None and scheme != "full":
        return f"softmax_bits is for scheme full; in {scheme} softmax outputs have the activations' bits"
    if not spec.mixed or spec.weight >= least:
        return None
    return f"{spec} cannot be met with weights of {least} bits or more; allow narrower ones (option widths)"


def finished(search: AnySearch, working: Working, ctx: RunContext) -> QuantizedModel:
    """The result, with what the search counted and drew handed to `ctx`."""
    ctx.count(images=len(search.images), candidates=search.evaluated)
    ctx.diagnostics("search", search.diagnostics())
    return working.quantized
