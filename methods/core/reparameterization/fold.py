"""LayerNorms that feed linear layers only, and moving per-channel scales and zero points from one into the other.

Pairs are found from the data flow and confirmed on real values; names and classes of networks play no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, OpKey, tap
from methods.core.graph.plain import plain_layers
from methods.core.graph.trace import Trace


@dataclass(frozen=True)
class Pair:
    """A LayerNorm and the linear layers that take its output, one (qkv) or several (q, k and v apart)."""

    norm: OpKey
    linears: tuple[OpKey, ...]


def find_pairs(net: nn.Module, graph: Trace, images: Tensor) -> list[Pair]:
    """Pairs in execution order.

    A LayerNorm in the part of the network that is quantized, its layers too, counts if scaling and shifting its output
    can be undone exactly in the layers that follow:

    - it is an `nn.LayerNorm` with a scale and a shift per channel, the last axis, and runs once. It computes with these
      two as they are, and nothing else uses them;
    - its output goes to linear layers only and is not returned by the network. These are plain `nn.Linear`, run once
      and share their weight and bias with nothing;
    - what they take has exactly the values of its output, channel by channel, moved at most (windows, shifts). That
      leaves out transposed tokens and scaled or gated outputs; tokens picked from it, such as the class token before a
      classifier; and windows padded with zeros, since a padded zero would stand for another value after the shift.

    Args:
        net: the network, not changed.
        graph: its trace.
        images: one or a few images (n, c, h, w) to compare values on; noise would do.
    """
    plain = plain_layers(net, graph, nn.Linear)

    def takes(op: Op, norm: OpKey) -> bool:
        operand = op.operands[0]
        return graph.inside(op.key) and op.key in plain and operand.ops == {norm} and not operand.parameters

    candidates = []
    for norm in graph.of_kind("layer_norm"):
        consumers = graph.consumers[norm.key]
        if not graph.inside(norm.key) or not _is_affine(net.get_submodule(norm.key.module)):
            continue
        if len(graph.runs[norm.key]) > 1 or not graph.owns(norm.key, "weight", "bias"):
            continue
        if consumers and all(takes(op, norm.key) for op in consumers):
            candidates.append(Pair(norm.key, tuple(op.key for op in consumers)))
    points = [(pair.norm, OUTPUT) for pair in candidates] + [(key, 0) for pair in candidates for key in pair.linears]
    output, found = tap(net, images, points)
    returned = {_storage(x) for x in pytree.tree_leaves(output) if isinstance(x, Tensor)}

    def only_moved(pair: Pair) -> bool:
        normed = found[pair.norm, OUTPUT]
        taken = [found[key, 0] for key in pair.linears]
        return _storage(normed) not in returned and all(_same_channels(normed, x) for x in taken)

    return [pair for pair in candidates if only_moved(pair)]


def _is_affine(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.weight is not None
        and module.bias is not None
    )


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _same_channels(a: Tensor, b: Tensor) -> bool:
    """Whether (..., c) and (..., c) hold the same values in every channel, in whatever order."""
    if a.shape[-1] != b.shape[-1] or a.numel() != b.numel():
        return False
    return torch.equal(a.flatten(0, -2).sort(0).values, b.flatten(0, -2).sort(0).values)


class Affine(Protocol):
    """A uniform quantizer as far as reparameterisation knows it."""

    @property
    def scale(self) -> Tensor:
        """The step, or one for each channel."""

    @property
    def zero_point(self) -> Tensor:
        """The code of 0, or one for each channel."""


def ratio_and_shift(before: Affine, after: Affine) -> tuple[Tensor, Tensor]:
    """r1 = s / s' and s r2 = s (z - z'), (c,) in double precision; the new output is x' = (x + s r2) / r1."""
    scale = before.scale.double()
    return scale / after.scale.double(), scale * (before.zero_point.double() - after.zero_point.double())


@torch.no_grad()
def fold(net: nn.Module, pair: Pair, before: Affine, after: Affine) -> None:
    """Change `net` so that quantizing the pair's tensor with one scale and zero point has the effect that one for each
    channel had; in float it computes what it did.

    It is `moved` with r1 = s / s' and s r2 = s (z - z') (RepQ-ViT; METHODS, section 6): code x / s + z then is
    x' / s' + z' of the new output x'.

    Args:
        net: changed in place.
        pair: where.
        before: the quantizer of s and z, both (c,).
        after: the quantizer of s' and z', scalars.
    """
    put(net, moved(net, pair, *ratio_and_shift(before, after)))


@torch.no_grad()
def moved(net: nn.Module, pair: Pair, ratio: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Parameters of the pair after which LayerNorm gives x' = (x + shift) / ratio and the layers behind it what they
    gave: its scale and shift become g / ratio and (b + shift) / ratio, a layer's weight and bias W diag(ratio) and
    bias - W shift.

    Args:
        net: not changed.
        pair: where.
        ratio: (c,) in double precision.
        shift: likewise.

    Returns:
        New tensors by qualified name, biases among them that a layer did not have.
    """
    norm = net.get_submodule(pair.norm.module)
    assert isinstance(norm, nn.LayerNorm)
    values = {
        f"{pair.norm.module}.weight": norm.weight.double() / ratio,
        f"{pair.norm.module}.bias": (norm.bias.double() + shift) / ratio,
    }
    for key in pair.linears:
        linear = net.get_submodule(key.module)
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.double()
        bias = -(weight @ shift)
        values[f"{key.module}.weight"] = weight * ratio
        values[f"{key.module}.bias"] = bias if linear.bias is None else linear.bias.double() + bias
    return {name: value.to(norm.weight.dtype) for name, value in values.items()}


@torch.no_grad()
def put(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give `net` the parameters `values`. A layer without a bias gets one, as a buffer: as a parameter it would count
    among those of the float network.
    """
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        module = net.get_submodule(path)
        own = getattr(module, attribute)
        if own is None:
            delattr(module, attribute)
            module.register_buffer(attribute, value.clone())
        else:
            own.copy_(value)


@torch.no_grad()
def add_to_bias(net: nn.Module, layer: str, more: Tensor) -> None:
    """Add `more` (outputs,), in double precision, to the bias of a layer of `net`; see `put` for one without."""
    module = net.get_submodule(layer)
    value = module.bias.double() + more if isinstance(module.bias, Tensor) else more
    put(net, {f"{layer}.bias": value.to(module.get_parameter("weight").dtype)})
