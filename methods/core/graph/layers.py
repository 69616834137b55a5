"""The kinds of layers: operations that multiply their input by a weight. What differs between them is here, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

# Kind (`methods.core.graph.intercept.KINDS`) -> its function of input, weight and further arguments.
LAYERS: Mapping[str, Callable[..., Tensor]] = {
    "linear": functional.linear,
    "conv": functional.conv2d,
    "conv_transpose": functional.conv_transpose2d,
}


def output_axis(kind: str) -> int:
    """The axis of a layer's weight that its output channels lie along.

    1 in a transposed convolution, whose weight is (in, out / groups, height, width). Where that one has groups, it is
    the channels at one place of all groups that have an index in common.
    """
    return 1 if kind == "conv_transpose" else 0
