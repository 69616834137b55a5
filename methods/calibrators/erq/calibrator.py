"""ERQ (ICML 2024) as a calibrator: RepQ-ViT, then layer by layer two regressions that take up quantization's errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.erq.info import ErqOptions
from methods.calibrators.erq.regression import Coded, Moments, activation_regression, nearest, weight_regression
from methods.core.graph.segments import cut
from methods.core.graph.sites import WeightSite
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import Trace, trace
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.percentile import percentile_quantizer
from methods.core.quantized import Quantized
from methods.core.reconstruction.units import LayerUnit, SegmentUnit
from methods.core.reconstruction.walk import Walk
from methods.core.reparameterization.calibrator import RepQ

_AT_ONCE = 32  # images


class Erq:
    """The calibrator. All is in closed form; weights change, which RepQ-ViT alone leaves at their nearest codes."""

    def __init__(self, options: ErqOptions) -> None:
        self.options = options

    @torch.no_grad()
    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """RepQ-ViT's quantizers on `images` (n, c, h, w), then linear layers in execution order, each on inputs from
        all before it as they are then.
        """
        net, quantized = RepQ(self.options).folded(model, images, spec=spec, scheme=scheme, ctx=ctx)
        graph = trace(model)
        blocks = find_blocks(graph)
        floats, quants = (Walk(each, blocks, images, _AT_ONCE) for each in (net, quantized.net))
        assert quantized.activations is not None
        transforms = dict(quantized.activations)
        segments = cut(graph, blocks, quantized.sites.weights)
        for number, segment in enumerate(segments):
            ctx.progress(f"regress {number + 1}/{len(segments)}", number / len(segments))
            whole = SegmentUnit(floats, quants, segment, graph, transforms)
            for site in segment.layers:
                if site.op.kind == "linear":
                    unit = LayerUnit(whole, floats, quants, site, graph=graph, transforms=transforms)
                    self._regress(unit, site, net, quantized, shared_bias=_shares_bias(model.net, graph, site))
                    ctx.count(regressed=1)
        return quantized

    def _regress(
        self, unit: LayerUnit, site: WeightSite, net: nn.Module, quantized: Quantized, *, shared_bias: bool
    ) -> None:
        """Replace the layer's quantized weight, and its bias if it has one of its own."""
        o = self.options
        weight = net.get_parameter(site.parameter).detach().double()
        owner = quantized.net.get_submodule(site.op.module)
        plain = site.parameter == f"{site.op.module}.weight" and not shared_bias
        bias = owner.bias if isinstance(owner, nn.Linear) and plain else None
        if bias is not None:
            weight = torch.cat([weight, bias.detach().double()[:, None]], 1)
        inputs, reference = (
            torch.cat([x.flatten(0, -2) for x in runs]) for runs in (unit.inputs, unit.float_inputs)
        )  # fmt: skip
        moments = Moments.of(inputs, reference, bias=bias is not None)
        vectors = all(x.shape[1:-1].numel() == 1 for x in unit.inputs)  # one for each image
        ridge = o.head_ridge if vectors else o.ridge
        if o.ridge_units == "relative":
            # Inputs that are all quantized to 0 say nothing, and any lambda keeps the weight; 0 would be singular.
            ridge *= float(moments.second.diagonal()[: inputs.shape[1]].mean()) or 1.0

        if o.activation_regression:
            weight = activation_regression(weight, moments, ridge)
        own = weight[:, : inputs.shape[1]]
        grid = percentile_quantizer(own.float(), site.bits, o.percentiles, granularity=PerChannel(0))
        if o.weight_regression:
            codes, weight = weight_regression(
                weight, grid, moments.second, ridge=ridge, refinements=o.refinements, bias=bias is not None
            )
        else:
            codes = nearest(own, grid)
        quantized.set_weight(site.parameter, Coded(grid, codes))
        if bias is not None:
            bias.copy_(weight[:, -1])


def _shares_bias(net: nn.Module, graph: Trace, site: WeightSite) -> bool:
    """Whether something else takes the bias that the layer has in the float network, which must then stay."""
    bias = getattr(net.get_submodule(site.op.module), "bias", None)
    return bias is not None and not graph.owns(site.op, "bias")
