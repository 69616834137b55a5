"""The quantized model as it is trained: float weights behind rounding, activation ranges from the images at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from harness.api.images import ImageSet
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.intercept import Interceptor, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.outputs import tensor_pairs
from methods.core.graph.sites import Sites, WeightSite
from methods.core.graph.trace import Trace
from methods.core.numerics.observers import OBSERVERS
from methods.core.numerics.quantizers import weight_quantizer
from methods.core.quantized import Quantized
from methods.end_to_end.psaq2.info import Psaq2Options

_AT_ONCE = 32  # images where no gradient is needed


class Student:
    """Starts as the float model, whose copy it trains.

    Args:
        model: the float model, the teacher; it is not changed.
        graph: its trace.
        sites: what is quantized.
        options: see `Psaq2Options`.
        ctx: random numbers and counters.
    """

    def __init__(self, model: VisionModel, graph: Trace, sites: Sites, options: Psaq2Options, ctx: RunContext) -> None:
        self._teacher = model
        self._sites = sites
        self._options = options
        self._ctx = ctx
        self._net = copy.deepcopy(model.net)
        quantized = {site.parameter: site for site in sites.weights}
        self._layers = {
            op.key: quantized[op.weight] for op in graph.ops if op.weight is not None and op.weight in quantized
        }
        parameters = dict(self._net.named_parameters())
        part = self._net if graph.part is None else self._net.get_submodule(graph.part)
        chosen = [parameters[name] for name in quantized] if options.trained == "weights" else part.parameters()
        self._trained = list(chosen)
        self._optimiser = torch.optim.Adam(self._trained, lr=options.student_lr)
        self._generator = ctx.generator("student")
        self.losses: list[float] = []

    def distance(self, output: Any, reference: Any) -> Tensor:
        """D of the student's outputs from the teacher's, a scalar; of several outputs, their mean."""
        if self._options.distance == "task":
            return self._teacher.output_distance(output, reference)
        return torch.stack([(a - b).abs().mean() for a, b in tensor_pairs(output, reference)]).mean()

    @torch.no_grad()
    def quantized(self, images: Tensor) -> Quantized:
        """The quantized model as it is now, with activation ranges on `images` (n, c, h, w).

        Ranges are those of the network with rounded weights and float activations.
        """
        own = replace(self._teacher, net=self._net)
        weights = weight_quantizers(own, self._sites, symmetric=self._options.weights == "symmetric")
        rounded = replace(own, net=Quantized(self._net, self._sites, weights, None).net)
        observers = observe(rounded, images, self._sites, OBSERVERS[self._options.ranges], _AT_ONCE)
        return Quantized(self._net, self._sites, weights, activation_quantizers(self._sites, observers))

    def train(self, images: Tensor) -> None:
        """Bring the outputs on `images` (n, c, h, w) nearer to the teacher's; activation ranges are taken once."""
        o = self._options
        transforms = dict(self.quantized(images).activations or {})
        instead = {key: self._rounding(key, site) for key, site in self._layers.items()}
        with self._training(), Interceptor(self._net, transforms, instead=instead):
            for _ in range(o.student_steps):
                index = torch.randperm(len(images), generator=self._generator)[: o.student_batch].to(images.device)
                batch = ImageSet.whole(images)[index]
                with torch.no_grad():
                    reference = batch.through(self._teacher.net)
                loss = self.distance(batch.through(self._net), reference)
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
                self.losses.append(float(loss.detach()))
        self._ctx.count(student_steps=o.student_steps)

    def _rounding(self, key: OpKey, site: WeightSite) -> Callable[..., Tensor]:
        function, symmetric = LAYERS[key.kind], self._options.weights == "symmetric"

        def rounded(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # The grid follows the weight, so that none leaves it, and all keep their gradient: also the largest of a
            # channel, which the symmetric quantizer rounds one code beyond the last and clips.
            quantizer = weight_quantizer(weight.detach(), site.bits, symmetric=symmetric, axis=site.axis)
            weight = weight + (quantizer(weight.detach()) - weight).detach()
            return function(x, weight, *args, **kwargs)

        return rounded

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Parameters have gradients meanwhile; else image steps would compute them too."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self._trained:
                parameter.requires_grad_(False)
                parameter.grad = None
