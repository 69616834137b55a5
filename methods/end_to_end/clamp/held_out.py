"""Whether a search has done any good, by images that had no part in it. Ours: no source of CLAMP-ViT has it."""

from __future__ import annotations

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


def held_out_images(
    name: str, options: ClampOptions, model: VisionModel, *, spec: BitSpec, scheme: str, ctx: RunContext
) -> Tensor | None:
    """As many images of the source as are searched on, of another seed; None for the source `none`."""
    if name == "none":
        return None
    info = SOURCES[name]
    wanted = {"images": options.images, "rounds": options.rounds, "steps": options.held_out_steps}
    resolved = info.resolve("paper", {k: v for k, v in wanted.items() if k in info.options.model_fields})
    held_out = HeldOutContext(ctx)
    return images_of(info, resolved, info.load()(resolved), model, spec=spec, scheme=scheme, ctx=held_out)


def nearer(model: VisionModel, working: Working, start: State, images: Tensor, ctx: RunContext) -> bool:
    """Whether the searched model's output on held-out `images` (n, c, h, w) is nearer to the float one's than that of
    `start`, which it is set back to if not.
    """
    found = working.state
    searched = output_distance(model, working.quantized, images)
    working.restore(start)
    before = output_distance(model, working.quantized, images)
    kept = searched < before
    if kept:
        working.restore(found)
    ctx.diagnostics("held_out", {"start": before, "search": searched, "kept": kept})
    return kept
