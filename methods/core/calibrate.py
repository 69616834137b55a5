"""Calibration: one forward pass of the float model gives every activation site its quantizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from harness.api.images import ImageSet
from methods.core.graph.intercept import Interceptor, OpKey, Transform
from methods.core.graph.sites import Sites
from methods.core.numerics.observers import Observer
from methods.core.numerics.quantizers import Uniform, weight_quantizer


class SiteNotReachedError(RuntimeError):
    """A site that the trace found was not passed during calibration."""


@torch.no_grad()
def observe(
    model: VisionModel,
    images: Tensor,
    sites: Sites,
    make_observer: Callable[[], Observer],
    batch: int,
    *,
    instead: Mapping[tuple[OpKey, int], Observer] | None = None,
) -> dict[tuple[OpKey, int], Observer]:
    """Run the float model once over `images` (n, c, h, w) and let one observer watch each activation site: one of its
    own, or that which `instead` has for it. A site that runs several times in a pass is one site: its own observer sees
    the values of all runs of a batch at once, so that a moving average is one over batches.

    Raises:
        SiteNotReachedError: the network did not pass one of the sites.
    """
    given = instead or {}
    observers = {
        site.point: given[site.point] if site.point in given else make_observer() for site in sites.activations
    }
    reached: set[tuple[OpKey, int]] = set()
    runs: dict[tuple[OpKey, int], list[Tensor]] = defaultdict(list)  # of the present batch

    def watch(point: tuple[OpKey, int]) -> Transform:
        together = point[0] in sites.repeated and point not in given

        def transform(x: Tensor) -> Tensor:
            if together:
                runs[point].append(x.flatten().clone())
            else:
                observers[point].update(x)
            reached.add(point)
            return x

        return transform

    with Interceptor(model.net, {point: watch(point) for point in observers}):
        for part in ImageSet.whole(images).batches(batch):
            part.through(model.net)
            while runs:
                point, values = runs.popitem()
                observers[point].update(torch.cat(values))
    lost = [site for site in sites.activations if site.point not in reached]
    if lost:
        raise SiteNotReachedError(f"{len(lost)} activation sites were not reached, the first is {lost[0]}")
    return observers


@torch.no_grad()
def watch(
    net: nn.Module, images: Tensor, watchers: Mapping[tuple[OpKey, int], Callable[[Tensor], object]], batch: int
) -> None:
    """Show each watcher the tensor at its point, batch by batch, in one pass of `net` over `images`."""

    def show(watcher: Callable[[Tensor], object]) -> Transform:
        def transform(x: Tensor) -> Tensor:
            watcher(x)
            return x

        return transform

    with Interceptor(net, {point: show(watcher) for point, watcher in watchers.items()}):
        for part in ImageSet.whole(images).batches(batch):
            part.through(net)


def activation_quantizers(
    sites: Sites, observers: dict[tuple[OpKey, int], Observer]
) -> dict[tuple[OpKey, int], Uniform]:
    """Asymmetric per-tensor quantizers from the observed ranges."""
    return {s.point: Uniform.asymmetric(*observers[s.point].range(s.bits), s.bits) for s in sites.activations}


def weight_quantizers(model: VisionModel, sites: Sites, *, symmetric: bool) -> dict[str, Uniform]:
    """Per-output-channel min-max quantizers of all weights."""
    parameters = dict(model.net.named_parameters())
    return {
        s.parameter: weight_quantizer(parameters[s.parameter], s.bits, symmetric=symmetric, axis=s.axis)
        for s in sites.weights
    }
