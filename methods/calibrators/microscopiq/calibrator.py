"""MicroScopiQ (ISCA 2025) as a calibrator: migration, then GPTQ on blocks with outliers."""

from __future__ import annotations

from torch import Tensor, nn

from harness.api.contracts import RunContext, VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.microscopiq.info import MicroscopiqOptions
from methods.calibrators.microscopiq.outliers import MANTISSA, Layout, MicroBlocks, WithOutliers
from methods.core.compensation.calibrator import Compensation
from methods.core.compensation.columns import Rounder, alone
from methods.core.graph.intercept import Transform
from methods.core.graph.sites import WeightSite
from methods.core.graph.trace import Trace
from methods.core.numerics.granularity import PerChannel
from methods.core.reparameterization.migration import migrated

_AT_ONCE = 32  # images


class Microscopiq(Compensation):
    """The calibrator."""

    options: MicroscopiqOptions

    def __init__(self, options: MicroscopiqOptions) -> None:
        self.options = options

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """Outliers' formats are known for two widths."""
        if spec.weight in MANTISSA:
            return None
        return f"microscopiq has formats for outliers beside weights of 2 and 4 bits, and {spec} has others"

    def float_network(self, model: VisionModel, graph: Trace, images: Tensor, ctx: RunContext) -> nn.Module:
        """With channels migrated into weights."""
        if not self.options.migration:
            return model.net
        net, count = migrated(model, graph, images, self.options.migration, _AT_ONCE)
        ctx.count(migrated=count)
        return net

    def start_weights(self, net: nn.Module, sites: tuple[WeightSite, ...]) -> dict[str, Transform]:
        """In the same format, without compensation."""
        found = dict[str, Transform]()
        for site in sites:
            weight = net.get_parameter(site.parameter).detach()
            channels, rounder = PerChannel(site.axis), self._blocks(site)
            rows = channels.rows(weight)
            rounded = channels.whole(alone(rows, rounder).to(weight.dtype), weight)
            found[site.parameter] = WithOutliers.of(rounder, rounded, *rows.shape)
        return found

    def _blocks(self, site: WeightSite) -> MicroBlocks:
        o = self.options
        return MicroBlocks(Layout(site.bits, o.macro_block, o.micro_block, o.sigmas))

    def rounder(self, site: WeightSite, quantizer: Transform) -> Rounder:
        """See `MicroBlocks`."""
        return self._blocks(site)

    def finished(self, site: WeightSite, quantizer: Transform, rounder: Rounder, rounded: Tensor) -> Transform:
        """The values, with what is kept beside them."""
        assert isinstance(rounder, MicroBlocks)
        return WithOutliers.of(rounder, rounded, *PerChannel(site.axis).rows(rounded).shape)
