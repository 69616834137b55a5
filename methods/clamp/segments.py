"""Running pieces of a quantized network: one transformer block, or what lies between two blocks.

The search changes one layer at a time. What comes before that layer in its segment is replayed from a recording, what
comes before the segment is replaced by cached block outputs, and what comes after is not run: a candidate costs its
layer plus the rest of its segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.core.intercept import OpKey
from methods.core.quantized import Quantized
from methods.core.sites import WeightSite
from methods.core.structure import Block
from methods.core.trace import Trace


@dataclass(frozen=True)
class Segment:
    """Block number `index` (`is_block`), or the operations between block `index` - 1 and block `index`.

    The gap before block 0 is the stem; the gap whose index is the number of blocks is the tail with the head.
    """

    index: int
    is_block: bool
    layers: tuple[WeightSite, ...]


def cut(graph: Trace, blocks: list[Block], weights: tuple[WeightSite, ...]) -> list[Segment]:
    """Segments that hold weights, in execution order."""
    position = {op.key: i for i, op in enumerate(graph.ops)}
    ends = [position[b.output] for b in blocks]
    layers: dict[tuple[int, bool], list[WeightSite]] = {}
    for site in weights:
        inside = [i for i, b in enumerate(blocks) if f"{site.op.module}.".startswith(f"{b.path}.")]
        place = (inside[0], True) if inside else (sum(end < position[site.op] for end in ends), False)
        layers.setdefault(place, []).append(site)
    # A gap comes before the block of the same index.
    return [Segment(i, is_block, tuple(layers[i, is_block])) for i, is_block in sorted(layers)]


class _Stop(Exception):
    """Raised to leave a forward pass once the wanted tensors are known."""


class SegmentRunner:
    """Cached execution of a quantized network's segments on fixed images. Use within `with runner:`.

    Segments must be visited in execution order with `enter`, once each a pass.
    """

    def __init__(self, quantized: Quantized, blocks: list[Block], images: Tensor) -> None:
        self._quantized = quantized
        self._images = images
        self._modules = [quantized.net.get_submodule(b.path) for b in blocks]
        self._outputs: list[Tensor] = []  # of the blocks passed so far in this pass
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._recorded: dict[OpKey, Tensor] = {}
        self._mode = quantized.interceptor()

    def __enter__(self) -> SegmentRunner:
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        self._mode.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._mode.__exit__(*exc)
        self._no_grad.__exit__(*exc)

    def restart(self) -> None:
        """Begin a new pass over the segments."""
        self._outputs.clear()
        self._inputs.clear()

    def enter(self, segment: Segment) -> None:
        """Cache what `segment` needs from the segments before it, as they are quantized now."""
        last = segment.index + 1 if segment.is_block else segment.index
        while len(self._inputs) < last:
            # Inputs of the next block need the outputs of all before it.
            self._complete_outputs(len(self._inputs))
            self._inputs.append(self._block_input(len(self._inputs)))
        self._complete_outputs(segment.index)

    def _complete_outputs(self, count: int) -> None:
        while len(self._outputs) < count:
            i = len(self._outputs)
            args, kwargs = self._inputs[i]
            self._outputs.append(self._modules[i](*args, **kwargs))

    def _block_input(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))
            raise _Stop

        handle = self._modules[index].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with _replaced(self._modules[:index], self._outputs):
                self._quantized.net(self._images)
        except _Stop:
            pass
        finally:
            handle.remove()
        return found[0]

    def record(self, segment: Segment) -> Tensor:
        """Run `segment` as it is now, remember every operation's output, and return the segment's output."""
        self._recorded = {}
        self._mode.record, self._mode.replay = self._recorded, {}
        output = self._run(segment)
        self._mode.record = None
        return output

    def candidate(self, segment: Segment, layer: WeightSite) -> Tensor:
        """The segment's output with `layer` as it is now and everything before it as recorded."""
        before: dict[OpKey, Tensor] = {}
        for key, value in self._recorded.items():
            if key == layer.op:
                break
            before[key] = value
        self._mode.replay = before
        output = self._run(segment)
        self._mode.replay = {}
        return output

    def _run(self, segment: Segment) -> Tensor:
        if segment.is_block:
            args, kwargs = self._inputs[segment.index]
            return self._modules[segment.index](*args, **kwargs)  # type: ignore[no-any-return]
        if segment.index < len(self._modules):
            return self._block_input(segment.index)[0][0]  # type: ignore[no-any-return]
        with _replaced(self._modules, self._outputs):
            return self._quantized.net(self._images)  # type: ignore[no-any-return]

    def logits(self, segment: Segment, output: Tensor | None) -> Any:
        """The network's output; `output` is the block's, if known, so that only what follows it is run."""
        known = [*self._outputs[: segment.index]]
        if segment.is_block and output is not None:
            known.append(output)
        with _replaced(self._modules[: len(known)], known):
            return self._quantized.net(self._images)


@contextmanager
def _replaced(modules: list[nn.Module], outputs: list[Tensor]) -> Iterator[None]:
    """While open, `modules` return `outputs` without computing."""

    def constant(value: Tensor) -> Any:
        return lambda *_args, **_kwargs: value

    for module, value in zip(modules, outputs, strict=True):
        module.forward = constant(value)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@torch.no_grad()
def float_outputs(net: nn.Module, blocks: list[Block], images: Tensor) -> tuple[list[Tensor], list[Tensor], Any]:
    """One pass of the float network: inputs of all blocks, outputs of all blocks, and the network's output."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = []
    for block in blocks:
        module = net.get_submodule(block.path)
        handles.append(module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])))
        handles.append(module.register_forward_hook(lambda _m, _args, result: outputs.append(result)))
    try:
        final = net(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs, final
