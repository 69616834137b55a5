"""The quantized model under search: a gene for every layer, activation ranges from the images at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api.contracts import VisionModel
from harness.api.spec import MAX_BITS, BitSpec
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import SearchStage
from methods.core.calibrate import observe
from methods.core.graph.sites import Point, Sites
from methods.core.numerics.affine import fake_quantize
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.observers import OBSERVERS, Observer
from methods.core.numerics.quantizers import Uniform, weight_quantizer
from methods.core.quantized import Quantized

_OBSERVED_AT_ONCE = 32


@dataclass(frozen=True)
class State:
    """A quantized model under search as it was once: genes, and what its activation ranges are from."""

    genes: Mapping[str, Gene]
    observers: Mapping[Point, Observer]
    ranged: Mapping[tuple[Point, int], Uniform]


class Working:
    """Weights asymmetric min-max per channel times a gene's multiplier, in a gene's width.

    Args:
        model: the float model.
        sites: what is quantized.
        spec: the precision asked for; in mixed precision all layers start at the widest candidate.
        options: see `SearchStage`.
        images: calibration images (n, c, h, w).
    """

    def __init__(self, model: VisionModel, sites: Sites, spec: BitSpec, options: SearchStage, images: Tensor) -> None:
        self._model = model
        self._spec = spec
        self._margin = options.activation_margin
        self._observer = OBSERVERS[options.ranges]
        self.widths = options.widths if spec.mixed else (int(spec.weight),)
        parameters = dict(model.net.named_parameters())
        self._float = {site.parameter: parameters[site.parameter].detach() for site in sites.weights}
        self._axes = {site.parameter: site.axis for site in sites.weights}
        self._bases = {
            name: {bits: weight_quantizer(weight, bits, symmetric=False, axis=self._axes[name]) for bits in self.widths}
            for name, weight in self._float.items()
        }
        self.genes = {name: Gene(self.widths[-1], 1.0) for name in self._float}
        self._sites = sites
        self._observers: dict[Point, Observer] = {}
        self._ranged: dict[tuple[Point, int], Uniform] = {}
        self._observe(images)
        sites, activations = self._activations()
        weights = {name: self._quantizer(name, gene) for name, gene in self.genes.items()}
        self.quantized = Quantized(model.net, sites, weights, activations)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of every layer's weight."""
        return {name: weight.numel() for name, weight in self._float.items()}

    @property
    def bits(self) -> dict[str, int]:
        """Width of every layer's weight."""
        return {name: gene.bits for name, gene in self.genes.items()}

    def observe(self, images: Tensor) -> None:
        """Take the activation ranges from other images."""
        self._observe(images)
        self._apply_activations()

    def set(self, genes: Mapping[str, Gene]) -> None:
        """Use `genes` from now on; the widths of the activations around them follow."""
        moved = any(self.genes[name].bits != gene.bits for name, gene in genes.items())
        for name, gene in genes.items():
            if self.genes[name] != gene:
                self.genes[name] = gene
                self.quantized.set_weight(name, self._quantizer(name, gene))
        if moved:
            self._apply_activations()

    @property
    def state(self) -> State:
        """The model as it is, to go back to."""
        return State(dict(self.genes), dict(self._observers), dict(self._ranged))

    def restore(self, state: State) -> None:
        """Be as `state` says again, to the bit."""
        self._observers = dict(state.observers)
        self._ranged = dict(state.ranged)
        self.set(state.genes)
        self._apply_activations()

    def weights(self, name: str, genes: Sequence[Gene]) -> Tensor:
        """The layer's weight as each of `genes` would round it: (len(genes), *weight.shape)."""
        weight = self._float[name]
        bases = [self._bases[name][gene.bits] for gene in genes]
        factor = torch.tensor([[g.multiplier] for g in genes], dtype=weight.dtype, device=weight.device)
        scale = torch.stack([b.scale for b in bases]) * factor
        zero = torch.stack([b.zero_point for b in bases])
        top = torch.tensor([[b.qmax] for b in bases], device=weight.device)
        channels = PerChannel(self._axes[name])
        return fake_quantize(weight, *(channels.aligned(each, weight.shape) for each in (scale, -zero, top - zero)))

    def _quantizer(self, name: str, gene: Gene) -> Uniform:
        return self._bases[name][gene.bits].scaled(gene.multiplier)

    def _observe(self, images: Tensor) -> None:
        self._observers = observe(self._model, images, self._sites, self._observer, _OBSERVED_AT_ONCE)
        self._ranged.clear()

    def _activations(self) -> tuple[Sites, dict[Point, Uniform]]:
        """The sites at the present widths, and their quantizers, each made once: a range may be costly to find."""
        sites = self._sites
        if self._spec.mixed:
            sites = sites.with_widths(self.bits, lambda bits: min(MAX_BITS, bits + self._margin))
        for site in sites.activations:
            if (site.point, site.bits) not in self._ranged:
                ends = self._observers[site.point].range(site.bits)
                self._ranged[site.point, site.bits] = Uniform.asymmetric(*ends, site.bits)
        return sites, {site.point: self._ranged[site.point, site.bits] for site in sites.activations}

    def _apply_activations(self) -> None:
        self.quantized.sites, activations = self._activations()
        self.quantized.set_activations(activations)
