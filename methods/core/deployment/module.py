"""The network that computes with codes: one module, ready for `torch.export`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.api.integers import dequantize_channels
from methods.core.deployment.codes import StoredCodes
from methods.core.graph.intercept import Interceptor, OpKey, Transform
from methods.core.graph.layers import LAYERS
from methods.core.graph.sites import Point


class Weight(nn.Module):
    """A weight's codes as buffers; those of a linear layer are transposed, (in, out), as runtimes multiply by them."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, stored: StoredCodes, *, transposed: bool) -> None:
        super().__init__()
        self.register_buffer("codes", stored.codes.t().contiguous() if transposed else stored.codes)
        self.register_buffer("scale", stored.scale)
        self.register_buffer("zero_point", stored.zero_point)
        self.axis = 1 - stored.axis if transposed else stored.axis

    def forward(self) -> Tensor:
        """The values."""
        values: Tensor = dequantize_channels(self.codes, self.scale, self.zero_point, self.axis)
        return values


def linear(weight: Weight) -> Callable[..., Tensor]:
    """`functional.linear` with the stored weight: a product and then a sum, since a bias that is given with the product
    is rounded by runtimes to the product of both steps, which is coarse in few bits. Rows have an axis more meanwhile,
    since the product and the sum of two matrices are put together again.
    """

    def compute(x: Tensor, _: Tensor, bias: Tensor | None = None) -> Tensor:
        product = torch.matmul(x[:, None], weight())[:, 0] if x.dim() == 2 else torch.matmul(x, weight())
        return product if bias is None else product + bias

    return compute


def convolution(weight: Weight, kind: str) -> Callable[..., Tensor]:
    """The layer of that kind with the stored weight, and the bias apart as in `linear`."""
    function = LAYERS[kind]

    def compute(x: Tensor, _: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        product = function(x, weight(), None, *rest, **more)
        return product if bias is None else product + bias.view(-1, 1, 1)

    return compute


class Deployed(nn.Module):
    """The quantized network, or its `part`, as a module of its own.

    Args:
        net: with rounded weights; it is copied.
        part: the module of it that is run, None for all of it.
        weights: stored codes by parameter name.
        layers: operation -> its weight, for the layers that run on stored codes.
        transforms: what is done with operands and results.
    """

    def __init__(
        self,
        net: nn.Module,
        part: str | None,
        weights: Mapping[str, StoredCodes],
        layers: Mapping[OpKey, str],
        transforms: Mapping[Point, Transform],
    ) -> None:
        super().__init__()
        linears = {name for op, name in layers.items() if op.kind == "linear"}
        self.net = copy.deepcopy(net).eval()
        self.part = part
        self.stored = nn.ModuleDict(
            {key_of(name): Weight(codes, transposed=name in linears) for name, codes in weights.items()}
        )
        self._transforms = dict(transforms)
        self._instead: dict[OpKey, Callable[..., Tensor]] = {}
        for op, name in layers.items():
            weight = self.stored[key_of(name)]
            assert isinstance(weight, Weight)
            self._instead[op] = linear(weight) if name in linears else convolution(weight, op.kind)

    def forward(self, images: Tensor) -> Any:
        """Output for normalised images (n, channels, height, width)."""
        run = self.net.get_submodule(self.part or "")
        with Interceptor(self.net, self._transforms, instead=self._instead):
            return run(images)


def key_of(parameter: str) -> str:
    """A parameter's name as that of a module."""
    return parameter.replace(".", "/")
