"""GPTQ (ICLR 2023) on per-channel grids and on blocks of microscaling formats."""

from __future__ import annotations

from torch import Tensor, nn

from methods.calibrators.gptq.info import GptqOptions
from methods.core.compensation.calibrator import Compensation, Given
from methods.core.compensation.columns import Blocks, Channels, Rounder
from methods.core.graph.intercept import Transform
from methods.core.graph.sites import WeightSite
from methods.core.numerics.microscaling import MicroscaledWeight
from methods.core.numerics.quantizers import Uniform, weight_quantizer


class Gptq(Compensation):
    """The calibrator."""

    options: GptqOptions

    def __init__(self, options: GptqOptions) -> None:
        self.options = options

    def start_weights(self, net: nn.Module, sites: tuple[WeightSite, ...]) -> dict[str, Transform]:
        """Min-max grids, or blocks where the site's format has them."""
        symmetric, found = self.options.weights == "symmetric", dict[str, Transform]()
        for site in sites:
            weight = net.get_parameter(site.parameter)
            if site.format is None:
                found[site.parameter] = weight_quantizer(weight, site.bits, symmetric=symmetric, axis=site.axis)
            else:
                found[site.parameter] = MicroscaledWeight.of(weight, site.format, site.axis)
        return found

    def rounder(self, site: WeightSite, quantizer: Transform) -> Rounder:
        """By the grid, or by blocks."""
        if site.format is not None:
            return Blocks(site.format)
        assert isinstance(quantizer, Uniform)
        return Channels(quantizer)

    def finished(self, site: WeightSite, quantizer: Transform, rounder: Rounder, rounded: Tensor) -> Transform:
        """The values, which on a grid are made exact in their type; powers of two are."""
        return Given(quantizer, quantizer(rounded) if isinstance(quantizer, Uniform) else rounded)
