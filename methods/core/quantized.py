"""The quantized model: a copy of the float network with rounded weights, run under activation quantizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.api.contracts import Grid, LayerSummary, QuantSummary
from methods.core.graph.intercept import Interceptor, OpKey, Transform, UnsupportedNetworkError
from methods.core.graph.sites import Sites
from methods.core.numerics.granularity import PerBlock, PerGroup
from methods.core.numerics.quantizers import Quantizer, Stored, Uniform


class MissingParametersError(RuntimeError):
    """A site has no quantizer."""


class UnboundedRangeError(UnsupportedNetworkError):
    """The values at a site are not finite."""


class Quantized:
    """A fake-quantized network (implements `harness.api.contracts.QuantizedModel`).

    Args:
        net: the float network; it is copied, not changed.
        sites: what is to be quantized.
        weights: quantizer of each weight, by parameter name.
        activations: quantizer of each activation, by (operation, slot). None leaves all activations in float, which
            is only for a method's own intermediate use: `summary` then raises.

    Raises:
        MissingParametersError: a site was left without a quantizer.
        UnboundedRangeError: the range of a site's uniform quantizer is not finite.
    """

    deployment = "methods.core.deployment:deployed"  # see `harness.api.contracts.Deployable`

    def __init__(
        self,
        net: nn.Module,
        sites: Sites,
        weights: Mapping[str, Transform],
        activations: Mapping[tuple[OpKey, int], Quantizer] | None,
    ) -> None:
        missing = [str(s) for s in sites.weights if s.parameter not in weights]
        if activations is not None:
            missing += [str(s) for s in sites.activations if s.point not in activations]
        if missing:
            raise MissingParametersError(f"{len(missing)} sites have no quantizer, the first is {missing[0]}")
        self.net = copy.deepcopy(net)
        self.sites = sites
        self.weights = dict(weights)
        self.activations = None if activations is None else {s.point: activations[s.point] for s in sites.activations}
        self._check_ranges()
        self._float = dict(net.named_parameters())
        self._own = dict(self.net.named_parameters())
        for site in sites.weights:
            self.set_weight(site.parameter, self.weights[site.parameter])

    def _check_ranges(self) -> None:
        for site in self.sites.activations:
            quantizer = (self.activations or {}).get(site.point)
            if not isinstance(quantizer, Uniform):  # the ends of microscaling's blocks come with the values
                continue
            low, high = float(quantizer.low), float(quantizer.high)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise UnboundedRangeError(
                    f"the values at {site} reach from {low:g} to {high:g} on the calibration images, which no range "
                    "can hold; a mask of -inf has to be added directly before a softmax"
                )

    @torch.no_grad()
    def set_weight(self, name: str, quantizer: Transform) -> None:
        """Round the float weight `name` with `quantizer` from now on."""
        self.weights[name] = quantizer
        self._own[name].copy_(quantizer(self._float[name].detach()))

    def grid(self, name: str) -> Uniform:
        """The quantizer of the weight `name`, where it is a uniform one.

        Raises:
            TypeError: it is of another kind.
        """
        quantizer = self.weights[name]
        if not isinstance(quantizer, Uniform):
            raise TypeError(f"weight '{name}' has a {type(quantizer).__name__}, which is not a uniform quantizer")
        return quantizer

    def set_activations(self, quantizers: Mapping[tuple[OpKey, int], Quantizer]) -> None:
        """Replace all activation quantizers."""
        self.activations = {s.point: quantizers[s.point] for s in self.sites.activations}

    def interceptor(self, **extra: Any) -> Interceptor:
        """The mode under which `self.net`, or one of its blocks, computes with quantized activations."""
        return Interceptor(self.net, dict(self.activations or {}), traced=self.sites.traced, **extra)

    def __call__(self, images: Tensor, **more: Any) -> Any:
        """Output of the quantized network on normalised images (n, c, h, w), with what else its `forward` is given."""
        with self.interceptor():
            return self.net(images, **more)

    @property
    def grids(self) -> dict[str, Grid]:
        """Activation sites whose quantizer has a scale for each index of an axis, and weights in groups or blocks."""
        axes = {str(s): getattr((self.activations or {}).get(s.point), "axis", None) for s in self.sites.activations}
        found = {label: Grid(axis) for label, axis in axes.items() if axis is not None}
        for site in self.sites.weights:
            own = getattr(self.weights[site.parameter], "grid", None)
            if isinstance(own, Grid):
                found[site.parameter] = own
            granularity = getattr(self.weights[site.parameter], "granularity", None)
            if isinstance(granularity, PerGroup | PerBlock):  # of a block, a row has the values along the last axis
                found[site.parameter] = Grid(group=granularity.block(self._float[site.parameter].shape)[-1])
        return found

    @property
    def dynamic(self) -> dict[str, str]:
        """Activation sites whose quantizer depends on the values that it rounds, and how."""
        texts = {str(s): getattr((self.activations or {}).get(s.point), "dynamic", "") for s in self.sites.activations}
        return {label: text for label, text in texts.items() if text}

    @property
    def summary(self) -> QuantSummary:
        """Counts, sizes and ranges of what is quantized.

        Raises:
            MissingParametersError: activations are in float.
        """
        if self.activations is None:
            raise MissingParametersError("the activations of this model are not quantized")
        weights = {s.parameter: _stored(self.weights[s.parameter], s.bits) for s in self.sites.weights}
        layers = tuple(
            LayerSummary(s.parameter, self._float[s.parameter].numel(), s.bits, *(weights[s.parameter] or ()))
            for s in self.sites.weights
        )
        activations = {str(s): _stored(self.activations[s.point], s.bits) for s in self.sites.activations}
        told = {label: stored for label, stored in activations.items() if stored is not None}
        total = sum(p.numel() for p in self._float.values())
        return QuantSummary(
            weight_sites=len(self.sites.weights),
            activation_sites=len(self.sites.activations),
            layers=layers,
            float_values=total - sum(layer.size for layer in layers),
            activation_ranges={
                str(s): (float(self.activations[s.point].low), float(self.activations[s.point].high))
                for s in self.sites.activations
            },
            activation_bits={str(s): s.bits for s in self.sites.activations},
            bit_operations=self.sites.bit_operations,
            activation_formats={label: number_format for label, (number_format, _) in told.items()},
            activation_scale_bits={label: bits for label, (_, bits) in told.items()},
            activation_scaled_values={
                str(s): values
                for s in self.sites.activations
                if (values := getattr(self.activations[s.point], "scaled_values", None))
            },
            float_products=self.sites.float_products,
        )


def _stored(quantizer: object, bits: int) -> Stored | None:
    """What a quantizer tells of its format; None if it tells nothing."""
    tell: Callable[[int], Stored | None] | None = getattr(quantizer, "stored_as", None)
    return None if tell is None else tell(bits)
