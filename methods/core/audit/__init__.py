"""What a method hands back, held against what was asked for: scheme and precision, site by site, as it computes.

Nothing of this relies on what a method says of itself. Sites are sought in the float model (`expected`); then the
method's model runs on a few images while two modes watch (`watch`).

What is handed back has to be what the network gave, and no multiplication may be left over: a second path in float,
inside of the network, beside it or in place of one of its operations, multiplies more than the float model does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.api.contracts import QuantizedModel, VisionModel
from harness.api.spec import BitSpec
from methods.core.audit.expected import Expected, Stated, Uninspectable, check_summary
from methods.core.audit.watch import Watch
from methods.core.graph.trace import Trace, trace_net

__all__ = ["Uninspectable", "audit", "network_of", "traced"]

VALUES, SLICES = 1024, 8  # looked at in a tensor, and channels of one: enough to tell a float from 256 values


def traced(model: VisionModel) -> Trace:
    """The graph of the float model, which audits of several results may share.

    Raises:
        Uninspectable: it cannot be traced.
    """
    try:
        return trace_net(model.net, model.input_shape, model.part)
    except RuntimeError as error:
        raise Uninspectable(f"the float model cannot be traced ({error})") from error


def audit(
    model: VisionModel,
    result: QuantizedModel,
    images: Tensor,
    *,
    scheme: str,
    spec: BitSpec,
    thorough: bool = False,
    graph: Trace | None = None,
) -> tuple[Any, list[str]]:
    """Run `result` on normalised `images` (n, c, h, w) and hold it against what was asked for.

    Args:
        model: the float model.
        result: what the method made of it.
        images: a few.
        scheme: which tensors are to be quantized.
        spec: to how many bits.
        thorough: look at all values instead of a sample.
        graph: the float model's, if it is known.

    Returns:
        Output, and findings, each the end of a sentence that begins with the method; empty if all is as it should be.

    Raises:
        Uninspectable: the result cannot be looked into, or has sites that it calls dynamic and no other fault.
    """
    expected = Expected.of(graph or traced(model), scheme, spec)
    net = network_of(result)
    stated = Stated.of(result, expected)
    watch = Watch(expected, stated, net, None if thorough else (VALUES, SLICES))
    with torch.no_grad(), watch.entered():
        output = result(images)
    unseen = watch.unseen()
    if unseen and not watch.findings:
        raise Uninspectable(
            f"{len(unseen)} operations of the float model did not run in its `net`, the first is {unseen[0]}"
        )
    if not watch.findings:
        watch.check_whole(output)
    total = sum(p.numel() for p in model.net.parameters())
    findings = [*stated.findings, *check_summary(result.summary, expected, total), *watch.findings]
    if stated.dynamic and not findings:
        point, how = next(iter(stated.dynamic.items()))
        raise Uninspectable(
            f"{len(stated.dynamic)} activation sites are dynamic, the first is {stated.labels[point]}: {how}"
        )
    return output, findings


def network_of(result: Any) -> nn.Module:
    """The network that `result` runs.

    Raises:
        Uninspectable: it has none.
    """
    net = result if isinstance(result, nn.Module) else getattr(result, "net", None)
    if isinstance(net, nn.Module):
        return net
    raise Uninspectable("it has no attribute `net`, the network that it runs")
