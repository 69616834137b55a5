"""What a transform makes of a float model, held against that model in every run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api.contracts import RunContext, Transform, VisionModel
from harness.api.errors import BadResult
from harness.api.images import ImageSet, probes

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4  # of the largest output: float32 through a deep network, and no more
COMPARED = 32  # calibration images, beside some of noise


def transformed(transform: Transform, name: str, model: VisionModel, images: Tensor, ctx: RunContext) -> VisionModel:
    """`model` with the network that the transform `name` makes of it on the calibration images (n, c, h, w).

    The largest difference of their outputs is kept with the record.

    Raises:
        BadResult: it is not the same function, or has other parameters.
    """
    net = transform.transform(model, images, ctx=ctx)
    _check_form(net, model.net, name)
    difference, size = _difference(net, model, images)
    ctx.diagnostics("transform", {"name": name, "difference": difference, "largest_output": size})
    if not difference <= TOLERANCE * size:
        raise BadResult(
            f"transform '{name}' gives another function: outputs differ by {difference:.3g} from the float model's, "
            f"which reach {size:.3g}"
        )
    return replace(model, net=net)


def _check_form(net: nn.Module, before: nn.Module, name: str) -> None:
    import torch

    if not isinstance(net, torch.nn.Module) or net is before:
        raise BadResult(f"transform '{name}' does not give a network of its own")
    if any(module.training for module in net.modules()) or any(p.requires_grad for p in net.parameters()):
        raise BadResult(f"transform '{name}' gives a network that is left to be trained")
    own, others = ({n: (p.dtype, p.shape, p.device) for n, p in each.named_parameters()} for each in (net, before))
    if own != others:
        different = sorted(n for n in own.keys() | others.keys() if own.get(n) != others.get(n))
        raise BadResult(f"transform '{name}' gives a network of other parameters, '{different[0]}' for one")


def _difference(net: nn.Module, model: VisionModel, images: Tensor) -> tuple[float, float]:
    """Largest difference of any output, and largest output, on calibration images and on noise."""
    import torch
    from torch.utils._pytree import tree_leaves

    def outputs(each: nn.Module, part: ImageSet) -> list[Any]:
        with torch.no_grad():
            found = tree_leaves(part.through(each))
        return [x for x in found if isinstance(x, torch.Tensor) and x.is_floating_point()]

    difference = size = 0.0
    for batch in (images[:COMPARED], probes(model)):
        part = ImageSet.whole(batch)
        found, expected = outputs(net, part), outputs(model.net, part)
        if len(found) != len(expected):
            return float("inf"), 1.0
        for own, reference in zip(found, expected, strict=True):
            if own.shape != reference.shape or not bool(torch.isfinite(own).all()):
                return float("inf"), 1.0
            difference = max(difference, float((own - reference).abs().max()))
            size = max(size, float(reference.abs().max()))
    return difference, size
