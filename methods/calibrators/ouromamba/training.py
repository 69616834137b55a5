"""The last part of OuroMamba's quantizer: steps of weights and positions trained block by block."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.contracts import RunContext, VisionModel
from methods.calibrators.ouromamba.info import OuroMambaOptions
from methods.calibrators.ouromamba.quantizer import Tokens, rounded
from methods.core.graph.segments import cut
from methods.core.graph.sites import Point
from methods.core.graph.structure import find_pieces
from methods.core.graph.trace import Trace
from methods.core.numerics.affine import SMALLEST
from methods.core.numerics.quantizers import Quantizer
from methods.core.quantized import Quantized
from methods.core.reconstruction.units import SegmentUnit
from methods.core.reconstruction.walk import Walk

_AT_ONCE = 32  # images where no step is taken


def train_steps(
    model: VisionModel,
    graph: Trace,
    quantized: Quantized,
    images: Tensor,
    *,
    options: OuroMambaOptions,
    ctx: RunContext,
) -> None:
    """Change the steps of `quantized` in every block so that its output points where the float model's does.

    Inputs of a block are those of the blocks as quantized so far.
    """
    pieces = find_pieces(graph)
    floats = Walk(model.net, pieces, images, _AT_ONCE)
    quants = Walk(quantized.net, pieces, images, _AT_ONCE)
    generator = ctx.generator("ouromamba")
    segments = [each for each in cut(graph, pieces, quantized.sites.weights) if each.is_block]
    for number, segment in enumerate(segments):
        ctx.progress(f"train steps {number + 1}/{len(segments)}", number / len(segments))
        assert quantized.activations is not None
        unit = SegmentUnit(floats, quants, segment, graph, quantized.activations)
        tokens = {point: q for point, q in quantized.activations.items() if isinstance(q, Tokens)}
        own = {point: tokens[point] for point in unit.points(tokens)}
        found = _trained(model, quantized, unit, own, o=options, generator=generator)
        ctx.count(trained_blocks=1)
        quantized.set_activations({**quantized.activations, **found})


def _trained(
    model: VisionModel,
    quantized: Quantized,
    unit: SegmentUnit,
    tokens: dict[Point, Tokens],
    *,
    o: OuroMambaOptions,
    generator: torch.Generator,
) -> dict[Point, Quantizer]:
    """Train one block: set its weights, and return its quantizers of tokens."""
    parameters = dict(model.net.named_parameters())
    grids = {name: quantized.grid(name) for name in unit.names}
    steps = {point: q.scale.clone().requires_grad_() for point, q in tokens.items()}
    weight_steps = {name: grid.scale.clone().requires_grad_() for name, grid in grids.items()}
    learned = [*steps.values(), *weight_steps.values()]
    optimiser = torch.optim.AdamW(learned, lr=o.lr, weight_decay=o.weight_decay)
    transforms = {point: partial(q.with_steps, scale=steps[point]) for point, q in tokens.items()}
    weights: dict[str, Tensor] = {}
    with unit.session({**(quantized.activations or {}), **transforms}, weights):
        for _ in range(o.epochs):
            for index in torch.randperm(len(unit.inputs[0]), generator=generator).split(o.batch):
                chosen = index.to(unit.inputs[0].device)
                for name, grid in grids.items():
                    aligned = grid.granularity.aligned(weight_steps[name], parameters[name].shape)
                    weights[name] = rounded(parameters[name], aligned, grid.qmax)
                outputs = unit.outputs([x[chosen] for x in unit.inputs], chosen)
                pairs = zip(outputs, unit.targets, strict=True)
                loss = torch.stack([1 - functional.cosine_similarity(a, b[chosen], -1).mean() for a, b in pairs]).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, o.clip)
                optimiser.step()
                with torch.no_grad():
                    for step in learned:
                        step.clamp_(min=SMALLEST)
    for name, grid in grids.items():
        quantized.set_weight(name, replace(grid, scale=weight_steps[name].detach()))
    return {point: replace(q, scale=steps[point].detach()) for point, q in tokens.items()}
