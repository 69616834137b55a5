"""DopQ-ViT as RepQ-ViT's engine with another quantizer of softmax outputs, chosen by what attention makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from methods.calibrators.dopqvit.info import DopqvitOptions
from methods.calibrators.dopqvit.tangent import TanQ
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey
from methods.core.graph.sites import ActivationSite, Point, Sites
from methods.core.graph.trace import Trace
from methods.core.numerics.quantizers import Quantizer
from methods.core.reparameterization.calibrator import RepQ, comes_from


class DopqVit(RepQ):
    """The calibrator; nothing is trained."""

    options: DopqvitOptions

    def _before(self, net: nn.Module, images: Tensor, sites: Sites, graph: Trace) -> Mapping[Point, Quantizer]:
        """TanQ of each softmax output that is the factor of a matrix product."""
        if self.options.softmax != "tangent":
            return {}
        found: dict[Point, Quantizer] = {}

        def product(site: ActivationSite) -> Callable[..., Tensor]:
            def run(left: Tensor, right: Tensor) -> Tensor:
                exact = left @ right
                if site.point not in found:
                    made = (
                        (lambda q: q(left) @ right) if site.slot == 0 else (lambda q: left @ q(right))
                    )  # what attention makes of weights under a quantizer
                    found[site.point] = _best(site.bits, self.options.tangents, made, exact)
                return exact

            return run

        instead: dict[OpKey, Callable[..., Tensor]] = {
            site.op: product(site)
            for site in sites.activations
            if site.slot != OUTPUT and site.op.kind == "matmul" and comes_from(site, graph, "softmax")
        }
        with Interceptor(net, {}, instead=instead):
            net(images)
        return found

    def _softmax(self, site: ActivationSite, x: Tensor) -> Quantizer:
        """Where its output is no factor of a product, as where heads are mixed: by its own error."""
        if self.options.softmax != "tangent":
            return super()._softmax(site, x)
        return _best(site.bits, self.options.tangents, lambda q: q(x), x)


def _best(bits: int, tangents: Sequence[float], made: Callable[[TanQ], Tensor], exact: Tensor) -> TanQ:
    """The first quantizer whose result has the least squared error."""
    candidates = [TanQ(bits, tangent) for tangent in tangents]
    errors = torch.stack([(made(q) - exact).square_().sum(dtype=torch.float64) for q in candidates])
    return candidates[int(errors.argmin())]
