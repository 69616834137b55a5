"""DopQ-ViT as RepQ-ViT's engine with another quantizer of softmax outputs, chosen by what attention makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from methods.calibrators.dopqvit.info import DopqvitOptions
from methods.calibrators.dopqvit.tangent import TanQ
from methods.core.graph.intercept import OUTPUT, Interceptor, OpKey
from methods.core.graph.sites import ActivationSite, Point, Sites, comes_from
from methods.core.graph.trace import Trace
from methods.core.numerics.quantizers import Quantizer
from methods.core.reparameterization.calibrator import RepQ


class DopqVit(RepQ):
    """The calibrator; nothing is trained."""

    options: DopqvitOptions

    def _before(self, net: nn.Module, images: Tensor, sites: Sites, graph: Trace) -> Mapping[Point, Quantizer]:
        """TanQ of each softmax output that is the factor of a matrix product, by what all its runs make of it."""
        if self.options.softmax != "tangent":
            return {}
        weighting = [
            site
            for site in sites.activations
            if site.slot != OUTPUT and site.op.kind == "matmul" and comes_from(site, graph, "softmax")
        ]
        candidates = {site.point: _candidates(site.bits, self.options.tangents) for site in weighting}
        errors: dict[Point, list[Tensor]] = {point: [] for point in candidates}

        def product(site: ActivationSite) -> Callable[..., Tensor]:
            def run(left: Tensor, right: Tensor) -> Tensor:
                exact = left @ right
                made = (
                    (lambda q: q(left) @ right) if site.slot == 0 else (lambda q: left @ q(right))
                )  # what attention makes of weights under a quantizer
                errors[site.point].append(_errors(candidates[site.point], made, exact))
                return exact

            return run

        instead: dict[OpKey, Callable[..., Tensor]] = {site.op: product(site) for site in weighting}
        with Interceptor(net, {}, instead=instead):
            net(images)
        return {point: _best(candidates[point], torch.stack(runs).sum(0)) for point, runs in errors.items() if runs}

    def _softmax(self, site: ActivationSite, x: Tensor) -> Quantizer:
        """Where its output is no factor of a product, as where heads are mixed: by its own error."""
        if self.options.softmax != "tangent":
            return super()._softmax(site, x)
        candidates = _candidates(site.bits, self.options.tangents)
        return _best(candidates, _errors(candidates, lambda q: q(x), x))


def _candidates(bits: int, tangents: Sequence[float]) -> list[TanQ]:
    return [TanQ(bits, tangent) for tangent in tangents]


def _errors(candidates: Sequence[TanQ], made: Callable[[TanQ], Tensor], exact: Tensor) -> Tensor:
    """The squared error of what is made with each quantizer."""
    return torch.stack([(made(q) - exact).square_().sum(dtype=torch.float64) for q in candidates])


def _best(candidates: Sequence[TanQ], errors: Tensor) -> TanQ:
    """The first quantizer of least error."""
    return candidates[int(errors.argmin())]
