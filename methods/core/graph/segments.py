"""Segments of a network, each a block or what lies between two blocks, and how to run a network from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.api.images import ImageSet
from methods.core.graph.intercept import OpKey
from methods.core.graph.sites import Sites, WeightSite
from methods.core.graph.structure import Piece
from methods.core.graph.trace import Trace


@dataclass(frozen=True)
class Segment:
    """Block number `index` (`is_block`), or the operations between block `index` - 1 and block `index`.

    The gap before block 0 is the stem; the gap whose index is the number of blocks is the tail with the head.
    """

    index: int
    is_block: bool
    layers: tuple[WeightSite, ...]

    def is_tail(self, blocks: int) -> bool:
        """Whether its output is that of the network, which has so many `blocks`."""
        return not self.is_block and self.index == blocks


def channel_axis(output: Tensor, *, tail: bool) -> int:
    """Where a tensor of a segment's output has its channels. Maps of convolutional heads in the tail, also those of
    several boxes per image, are channels-first; what blocks take and give is channels-last.
    """
    return output.dim() - 3 if tail and output.dim() >= 4 else -1


def cut(graph: Trace, blocks: Sequence[Piece], weights: tuple[WeightSite, ...]) -> list[Segment]:
    """Segments that hold weights, in execution order."""
    place = places(graph, blocks)
    layers: dict[tuple[int, bool], list[WeightSite]] = {}
    for site in weights:
        layers.setdefault(place(site.op), []).append(site)
    return [Segment(i, is_block, tuple(layers[i, is_block])) for i, is_block in sorted(layers)]


def reaching_back(graph: Trace, blocks: Sequence[Piece], sites: Sites) -> set[str]:
    """Weights with which activations of an earlier segment go: there a change of width changes cached outputs."""
    place = places(graph, blocks)
    own = {site.parameter: place(site.op) for site in sites.weights}
    return {name for site in sites.activations for name in site.layers if place(site.op) < own[name]}


def places(graph: Trace, blocks: Sequence[Piece]) -> Callable[[OpKey], tuple[int, bool]]:
    """(index, is_block) of an operation's segment; a gap comes before the block of the same index."""
    position = {op.key: i for i, op in enumerate(graph.ops)}
    ends = [position[b.output] for b in blocks]

    def place(op: OpKey) -> tuple[int, bool]:
        inside = [i for i, b in enumerate(blocks) if f"{op.module}.".startswith(f"{b.path}.")]
        return (inside[0], True) if inside else (sum(end < position[op] for end in ends), False)

    return place


class _Stop(Exception):
    """Raised to leave a forward pass once the wanted tensors are known."""


def first_arguments(module: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `run` first calls `module` with; it is run no further."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Stop

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    except _Stop:
        pass
    finally:
        handle.remove()
    return found[0]


def finish(
    net: nn.Module,
    blocks: Sequence[nn.Module],
    segment: Segment,
    images: ImageSet,
    known: Sequence[Tensor],
    *,
    output: Any,
) -> Any:
    """The network's output when `segment` gives `output` (None: it is run), and the blocks before it `known`.

    What a stem or downsampling hands on beside its output to the next block is computed.
    """
    if segment.index == len(blocks) and output is not None:
        return output
    known = list(known)
    with ExitStack() as stack:
        if output is not None and segment.is_block:
            known.append(output)
        elif output is not None:
            handle = blocks[segment.index].register_forward_pre_hook(lambda _module, args: (output, *args[1:]))
            stack.callback(handle.remove)
        stack.enter_context(replaced(blocks[: len(known)], known))
        return images.through(net)


@contextmanager
def tapped(modules: Sequence[nn.Module]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """While open, note the first argument and the output of each of `modules`, which are called once and in order.

    They are copies, since the network may write into what it passes on.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for module in modules:
            handles = (
                module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone())),
                module.register_forward_hook(lambda _module, _args, result: outputs.append(result.clone())),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield inputs, outputs


@contextmanager
def replaced(modules: Sequence[nn.Module], outputs: Sequence[Tensor]) -> Iterator[None]:
    """While open, `modules` return `outputs` without computing."""

    def constant(value: Tensor) -> Any:
        return lambda *_args, **_kwargs: value

    for module, value in zip(modules, outputs, strict=True):
        module.forward = constant(value)
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
