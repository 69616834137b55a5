"""The quantized model while its widths are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from harness.api.spec import MAX_BITS, BitSpec
from methods.core.graph.sites import ActivationSite, Point, Sites
from methods.core.numerics.quantizers import Quantizer, Uniform, weight_quantizer
from methods.core.quantized import Quantized


class Working:
    """Weights min-max per channel at widths of their own; activations follow in mixed precision.

    Args:
        net: the float network.
        sites: what is quantized, at the most bits if the precision is mixed.
        spec: the precision.
        quantizer: the quantizer of a site that has its width.
        margin: bits that activations have beyond their weights.
        symmetric: grid of the weights.
    """

    def __init__(
        self,
        net: nn.Module,
        sites: Sites,
        spec: BitSpec,
        quantizer: Callable[[ActivationSite], Quantizer],
        *,
        margin: int,
        symmetric: bool,
    ) -> None:
        self._sites, self._mixed, self._margin = sites, spec.mixed, margin
        self._quantizer, self._symmetric = quantizer, symmetric
        parameters = dict(net.named_parameters())
        self._float = {site.parameter: parameters[site.parameter].detach() for site in sites.weights}
        self._axes = {site.parameter: site.axis for site in sites.weights}
        self._made: dict[tuple[Point, int], Quantizer] = {}
        self._grids: dict[tuple[str, int], Uniform] = {}
        self.bits = {site.parameter: site.bits for site in sites.weights}
        weights = {name: self._grid(name, bits) for name, bits in self.bits.items()}
        self.quantized = Quantized(net, sites, weights, self._activations(sites))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of every layer's weight."""
        return {name: weight.numel() for name, weight in self._float.items()}

    def set(self, bits: Mapping[str, int]) -> None:
        """Give the layers `bits` from now on; the activations around them follow."""
        changed = {name: width for name, width in bits.items() if self.bits[name] != width}
        if not changed:
            return
        self.bits = {**self.bits, **changed}
        for name, width in changed.items():
            self.quantized.set_weight(name, self._grid(name, width))
        assert self._mixed, "widths that were asked for do not change"
        sites = self._sites.with_widths(self.bits, lambda width: min(MAX_BITS, width + self._margin))
        self.quantized.sites = sites
        self.quantized.set_activations(self._activations(sites))

    def _activations(self, sites: Sites) -> dict[Point, Quantizer]:
        for site in sites.activations:
            if (site.point, site.bits) not in self._made:
                self._made[site.point, site.bits] = self._quantizer(site)
        return {site.point: self._made[site.point, site.bits] for site in sites.activations}

    def _grid(self, name: str, bits: int) -> Uniform:
        if (name, bits) not in self._grids:
            self._grids[name, bits] = weight_quantizer(
                self._float[name], bits, symmetric=self._symmetric, axis=self._axes[name]
            )
        return self._grids[name, bits]
