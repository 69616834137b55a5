"""Whether a search has done any good, by images that had no part in it. Ours: no source of CLAMP-ViT has it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.api.compose import images_of
from harness.api.contracts import RunContext, VisionModel
from harness.api.plugins import PluginInfo
from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.working import State, Working
from methods.core.held_out import HeldOutContext, output_distance
from methods.end_to_end.clamp.info import ClampOptions
from methods.sources.clamp.info import INFO as CLAMP
from methods.sources.noise.info import INFO as NOISE
from methods.sources.psaq.info import INFO as PSAQ

SOURCES: dict[str, PluginInfo] = {"noise": NOISE, "psaq": PSAQ, "clamp": CLAMP}
BOTH = ("psaq", "clamp")  # another source, and the method's own


def held_out_images(
    judges: str, options: ClampOptions, model: VisionModel, *, spec: BitSpec, scheme: str, ctx: RunContext
) -> dict[str, Tensor]:
    """Images by source, as many of each as are searched on, of another seed.

    `judges` is a source, `both`, or `none`, for which there are none.
    """
    names = {"none": (), "both": BOTH}.get(judges, (judges,))
    held_out = HeldOutContext(ctx)
    wanted = {"images": options.images, "rounds": options.rounds, "steps": options.held_out_steps}
    found = {}
    for name in names:
        info = SOURCES[name]
        resolved = info.resolve("paper", {k: v for k, v in wanted.items() if k in info.options.model_fields})
        source = info.load()(resolved)
        found[name] = images_of(info, resolved, source, model, spec=spec, scheme=scheme, ctx=held_out)
    return found


def nearer(model: VisionModel, working: Working, start: State, judges: Mapping[str, Tensor], ctx: RunContext) -> bool:
    """Whether the searched model's output is nearer to the float one's than that of `start`, on the images (n, c, h, w)
    of every judge; if not, it is set back to the start.
    """
    found = working.state
    searched = distances(model, working, judges)
    working.restore(start)
    before = distances(model, working, judges)
    kept = all(searched[name] < before[name] for name in judges)
    if kept:
        working.restore(found)
    ctx.diagnostics("held_out", {"start": before, "search": searched, "kept": kept})
    return kept


def distances(model: VisionModel, working: Working, judges: Mapping[str, Tensor]) -> dict[str, float]:
    """Of quantized from float output, on the images of every judge."""
    return {name: output_distance(model, working.quantized, images) for name, images in judges.items()}
