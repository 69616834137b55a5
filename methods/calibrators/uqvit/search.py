"""The share of the weights in each layer's scaling by channel, chosen by the output of the block that it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.calibrators.uqvit.balance import behind_norm, weight_steps, without_norm
from methods.core.graph.intercept import Interceptor
from methods.core.graph.segments import Segment
from methods.core.graph.sites import Point
from methods.core.graph.structure import Block
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.numerics.quantizers import Divided, Quantizer, Uniform
from methods.core.quantized import Quantized
from methods.core.reconstruction.walk import Inputs, Walk
from methods.core.reparameterization.fold import Pair, moved, put

_AT_ONCE = 32  # images


@dataclass(frozen=True)
class Setting:
    """What one share makes of a layer: float parameters by name, its input then, and by what the quantizer divides."""

    parameters: dict[str, Tensor]
    x: Tensor
    ratio: Tensor | None = None


class BehindNorm:
    """The linear layers behind one LayerNorm, whose scale and shift take up ratio and shift of the channels.

    Args:
        net: the float network.
        pair: LayerNorm and layers.
        channels: quantizer of its output by channel.
        points: where that is quantized.
        shares: candidates.
    """

    def __init__(
        self, net: nn.Module, pair: Pair, channels: Uniform, points: Sequence[Point], shares: Sequence[float]
    ) -> None:
        self.names = tuple(f"{key.module}.weight" for key in pair.linears)
        self.points = tuple(points)
        self.shares: tuple[float | None, ...] = tuple(shares)
        self._net, self._pair, self._channels = net, pair, channels
        self._steps = weight_steps([net.get_parameter(name) for name in self.names])

    def setting(self, share: float | None, x: Tensor, quantizer: Quantizer) -> Setting:
        """For `x` as it arrives with share 0, as the search begins."""
        assert share is not None
        first_ratio, first_shift = behind_norm(self._channels, self._steps, 0.0)
        ratio, shift = behind_norm(self._channels, self._steps, share)
        plain = x.double() * first_ratio - first_shift
        return Setting(moved(self._net, self._pair, ratio, shift), ((plain + shift) / ratio).to(x.dtype))


class Alone:
    """A linear layer with nothing before it that could be scaled: its input's quantizer divides instead.

    Args:
        net: the float network.
        name: of the layer's weight.
        point: where its input is quantized, channels last.
        shares: candidates beside None, no scaling at all.
    """

    def __init__(self, net: nn.Module, name: str, point: Point, shares: Sequence[float]) -> None:
        self.names = (name,)
        self.points = (point,)
        self.shares: tuple[float | None, ...] = (None, *shares)
        self._weight = net.get_parameter(name).detach()
        self._steps = weight_steps([self._weight])

    def setting(self, share: float | None, x: Tensor, quantizer: Quantizer) -> Setting:
        """For `x` as it arrives, which `quantizer` has rounded so far."""
        if share is None:
            return Setting({self.names[0]: self._weight}, x)
        largest = quantizer(x).abs().flatten(0, -2).amax(0)
        ratio = without_norm(largest, self._steps, share).to(x.dtype)
        return Setting({self.names[0]: self._weight * ratio}, x / ratio, ratio)


class Search:
    """Layers in turn, on inputs from all that was chosen before.

    Args:
        net: the float network.
        own: a copy of it, with LayerNorms merged; changed.
        quantized: `own` quantized, which rounds its weights anew as they change; changed.
        blocks: transformer blocks.
        images: calibration images (n, c, h, w).
        percentiles: candidate ends of every range.
    """

    def __init__(
        self,
        net: nn.Module,
        own: nn.Module,
        quantized: Quantized,
        blocks: Sequence[Block],
        images: Tensor,
        *,
        percentiles: Sequence[float],
    ) -> None:
        self.computed = 0
        self.chosen: dict[str, float | None] = {}
        self._own, self._quantized, self._percentiles = own, quantized, percentiles
        self._floats, self._quants = (Walk(each, blocks, images, _AT_ONCE) for each in (net, quantized.net))
        self._weights = {site.parameter: site for site in quantized.sites.weights}
        self._bits = {site.point: site.bits for site in quantized.sites.activations}

    def run(self, segment: Segment, layers: Sequence[BehindNorm | Alone]) -> None:
        """Choose for those of the `layers` that are in the segment, in their order there."""
        first = {layer.names[0]: layer for layer in layers}
        own = [first[site.parameter] for site in segment.layers if site.parameter in first]
        if not own:  # as the stem, and the tail, which may be a whole detector's heads
            return
        targets = self._floats.every(segment, self._floats.enter(segment))
        with self._quantized.interceptor():
            inputs = self._quants.enter(segment)
        for layer in own:
            self._choose(layer, segment, inputs, targets)

    def _choose(self, layer: BehindNorm | Alone, segment: Segment, inputs: Inputs, targets: Sequence[Tensor]) -> None:
        assert self._quantized.activations is not None
        before = self._quantized.activations[layer.points[0]]
        x = self._arriving(layer.points[0], segment, inputs)
        found = []
        for share in layer.shares:
            self._use(layer, layer.setting(share, x, before))
            found.append(self._error(segment, inputs, targets))
        self.computed += len(found)
        best = layer.shares[found.index(min(found))]
        self.chosen[layer.names[0]] = best
        self._use(layer, layer.setting(best, x, before))

    def _use(self, layer: BehindNorm | Alone, setting: Setting) -> None:
        put(self._own, setting.parameters)
        rest = {name: value for name, value in setting.parameters.items() if name not in self._weights}
        put(self._quantized.net, rest)
        floats = dict(self._own.named_parameters())
        for name in layer.names:
            site = self._weights[name]
            channels = PerChannel(site.axis)
            grid = percentile_quantizer(floats[name], site.bits, self._percentiles, granularity=channels)
            self._quantized.set_weight(name, grid)
        bits = self._bits[layer.points[0]]
        base = percentile_quantizer(setting.x, bits, self._percentiles, widen=True)
        quantizer = base if setting.ratio is None else Divided(base, setting.ratio)
        assert self._quantized.activations is not None
        self._quantized.set_activations({**self._quantized.activations, **dict.fromkeys(layer.points, quantizer)})

    def _arriving(self, point: Point, segment: Segment, inputs: Inputs) -> Tensor:
        """The tensor at `point` before it is quantized, of all images."""
        assert self._quantized.activations is not None
        quantizer = self._quantized.activations[point]
        seen: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            seen.append(x)
            return quantizer(x)

        with Interceptor(self._quantized.net, {**self._quantized.activations, point: keep}):
            self._quants.every(segment, inputs)
        return torch.cat(seen)

    def _error(self, segment: Segment, inputs: Inputs, targets: Sequence[Tensor]) -> float:
        with self._quantized.interceptor():
            outputs = self._quants.every(segment, inputs)
        return sum(float((a - b).square_().sum(dtype=torch.float64)) for a, b in zip(outputs, targets, strict=True))
