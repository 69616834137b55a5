"""What methods require of a network, as `PluginInfo.requires` names it. All that is needed is its architecture: the
network may lie on the meta device.

Each function says in one sentence what the network lacks, or None. All of them raise UsageError if it cannot be
quantized at all in the scheme (`full` or `matmul`): an operation is unknown, or there is nothing to quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.api.contracts import VisionModel
from harness.api.errors import UsageError, first_line
from harness.api.spec import BitSpec
from methods.core.graph.attention import find_attention
from methods.core.graph.flow import TRACED_IMAGES
from methods.core.graph.intercept import OpKey, UnsupportedNetworkError
from methods.core.graph.operations import is_data
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import (
    NotATransformerError,
    Piece,
    branch_grid,
    find_blocks,
    find_pieces,
    find_scan_blocks,
    patch_grid,
)
from methods.core.graph.trace import Trace, trace

ANY_WIDTH = BitSpec.parse("W8A8")  # which sites there are does not depend on their widths
# Schemes in which networks are known to have sites, while these live: several requirements ask about one.
_schemes: WeakKeyDictionary[Trace, set[str]] = WeakKeyDictionary()
_not_alone: WeakKeyDictionary[Trace, str | None] = WeakKeyDictionary()  # what `pieces` found, which costs a pass
FEWEST_TOKENS = 2  # of which one may be the class token


def sites(model: VisionModel, scheme: str) -> str | None:
    """All arithmetic is seen, and the scheme has something to quantize."""
    _traced(model, scheme)
    return None


def blocks(model: VisionModel, scheme: str) -> str | None:
    """There are transformer blocks, and attention in one of them sees patches beside a class token."""
    return _lacks(model, scheme, _blocks)


def pieces(model: VisionModel, scheme: str) -> str | None:
    """The blocks can be run one by one: each is called once, with one tensor of the images first, and returns one."""
    return _lacks(model, scheme, _pieces)


def units(model: VisionModel, scheme: str) -> str | None:
    """The same, blocks around selective scans included: for methods that look at a block's result alone."""
    return _lacks(model, scheme, _units)


def products(model: VisionModel, scheme: str) -> str | None:
    """Every product has two factors, by whose result its quantizers can be judged."""
    return _lacks(model, scheme, _products)


def scans(model: VisionModel, scheme: str) -> str | None:
    """There are blocks around selective scans over the image's patches."""
    return _lacks(model, scheme, _scans)


def patches(model: VisionModel, scheme: str) -> str | None:
    """Where the blocks' attention enters the residual sum, there is a grid of the image's patches."""
    return _lacks(model, scheme, _patches)


def patches_and_pieces(model: VisionModel, scheme: str) -> str | None:
    """Both."""
    return _lacks(model, scheme, _patches, _pieces)


def attention(model: VisionModel, scheme: str) -> str | None:
    """The blocks' attention maps are of queries and keys, between patches whose grid is known."""
    return _lacks(model, scheme, lambda _model, graph: find_attention(graph))


def _lacks(model: VisionModel, scheme: str, *needed: Callable[[VisionModel, Trace], object]) -> str | None:
    graph = _traced(model, scheme)
    try:
        for need in needed:
            need(model, graph)
    except NotATransformerError as error:
        return first_line(error)
    return None


def _blocks(_model: VisionModel, graph: Trace) -> None:
    if all(graph.by_key[block.softmax].shape[2] <= FEWEST_TOKENS for block in find_blocks(graph)):
        raise NotATransformerError("no attention of the network sees two patches; larger images may have them")


def _patches(_model: VisionModel, graph: Trace) -> None:
    grid = patch_grid(graph)
    grids = [branch_grid(graph, block, grid) for block in find_blocks(graph)]  # of every block: each may be refused
    if all(found == (1, 1) for found in grids):
        raise NotATransformerError("no block of the network has a patch with neighbours; larger images may have them")


def _pieces(model: VisionModel, graph: Trace) -> None:
    find_blocks(graph)
    _units(model, graph)


def _products(_model: VisionModel, graph: Trace) -> None:
    for scan in graph.of_kind("scan"):
        raise NotATransformerError(
            f"{scan.key} of the network, a selective scan, multiplies more than two tensors, and quantizers are "
            "searched here by the results of layers and matrix products"
        )


def _scans(_model: VisionModel, graph: Trace) -> None:
    if not find_scan_blocks(graph):
        raise NotATransformerError("no block around selective scans (Vision Mamba) was found in the network")


def _units(model: VisionModel, graph: Trace) -> None:
    if graph not in _not_alone:
        _not_alone[graph] = _why_not_alone(model, graph)
    reason = _not_alone[graph]
    if reason is not None:
        raise NotATransformerError(reason)


@torch.no_grad()
def _why_not_alone(model: VisionModel, graph: Trace) -> str | None:
    net, found_pieces = model.net, find_pieces(graph)
    shared = _shared_by_pieces(graph, found_pieces)
    if shared is not None:
        return (
            f"layer {shared} of the network runs in several blocks, or in one and outside of it: blocks cannot be "
            "quantized one by one"
        )
    calls: dict[str, list[bool]] = {piece.path: [] for piece in found_pieces}
    paths = list(calls)
    if any(f"{path}.".startswith(f"{other}.") for path in paths for other in paths if path != other):
        return "transformer blocks of the network lie in each other, and cannot be run one by one"
    with ExitStack() as stack:
        for path in paths:

            def hook(_module: nn.Module, args: Any, kwargs: Any, result: Any, path: str = path) -> None:
                alone = bool(args) and isinstance(args[0], Tensor) and isinstance(result, Tensor)
                # GCViT's blocks also take queries of the whole images, which would have to be cut as the first tensor.
                others = [t for t in (*args[1:], *kwargs.values()) if is_data(t) and len(t) == TRACED_IMAGES]
                calls[path].append(alone and len(args[0]) == len(result) == TRACED_IMAGES and not others)

            handle = net.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        net(torch.zeros(TRACED_IMAGES, *model.input_shape, device=model.device))
    for path, found in calls.items():
        if found != [True]:
            return (
                f"block {path} of the network cannot be run alone: it runs {len(found)} times, or takes or gives "
                "other than one tensor of the images"
            )
    return None


def _shared_by_pieces(graph: Trace, pieces: Sequence[Piece]) -> str | None:
    """A weight of a layer of which some runs lie behind the end of a block and others before it."""
    outputs, ended = {piece.output for piece in pieces}, 0
    seen: dict[OpKey, int] = {}
    for op in graph.ops:
        if op.weight is not None and seen.setdefault(op.key, ended) != ended:
            return op.weight
        ended += op.key in outputs
    return None


def _traced(model: VisionModel, scheme: str) -> Trace:
    """The network's trace, which has sites in `scheme`."""
    try:
        graph = trace(model)
        known = _schemes.setdefault(graph, set())
        if scheme not in known:
            find_sites(graph, scheme, ANY_WIDTH)
            known.add(scheme)
    except UnsupportedNetworkError as error:
        raise UsageError(f"model '{model.name}' cannot be quantized in scheme {scheme}: {first_line(error)}") from None
    return graph
