"""Convolutions as products: the rows whose product with a matrix of the weight gives the output, place by place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Rows(NamedTuple):
    """Values (n, c); `present` (n, c) is 0 where there is no value of the input, None if nothing is left out."""

    values: Tensor
    present: Tensor | None = None


def joined(runs: Sequence[Rows | None]) -> Rows | None:
    """The rows of all runs of a layer together; None if one has none."""
    if len(runs) == 1:
        return runs[0]
    found = [run for run in runs if run is not None]
    if len(found) < len(runs):
        return None
    present = [run.present for run in found if run.present is not None]
    return Rows(torch.cat([run.values for run in found]), torch.cat(present) if present else None)


def matrix(kind: str, weight: Tensor) -> Tensor:
    """The weight of a layer as (output channels, c), one quantizer per row."""
    if kind == "conv_transpose":
        weight = weight.transpose(0, 1).flip(2, 3)
    return weight.flatten(1)


def rows(kind: str, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Rows | None:
    """What `matrix` is multiplied with for input `x` and the further arguments of a convolution, transposed or not.

    None if there is no such product.
    """
    return (_transposed if kind == "conv_transpose" else _plain)(x, weight, *args, **kwargs)


def _plain(  # noqa: PLR0917 - torch's own order
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Rows | None:
    if groups != 1 or isinstance(padding, str):
        return None
    return Rows(functional.unfold(x, weight.shape[2:], dilation, padding, stride).mT.flatten(0, 1))


def _transposed(  # noqa: PLR0917 - torch's own order
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Rows | None:
    """The convolution, its kernel mirrored, of the input with stride - 1 zeros between its values.

    These zeros are most of what a place sees, and a logarithmic quantizer need not have a code for 0.
    """
    if groups != 1:
        return None
    steps, shifts, extra, spread = (_pair(v) for v in (stride, padding, output_padding, dilation))
    margins = []
    for size, spacing, shift, more in zip(weight.shape[2:], spread, shifts, extra, strict=True):
        before = spacing * (size - 1) - shift
        margins.append((before, before + more))
    (top, bottom), (left, right) = margins
    found = []
    for values in (x, torch.ones_like(x)):
        sides = ((n - 1) * step + 1 for n, step in zip(x.shape[2:], steps, strict=True))
        stretched = x.new_zeros(*x.shape[:2], *sides)
        stretched[:, :, :: steps[0], :: steps[1]] = values
        padded = functional.pad(stretched, (left, right, top, bottom))
        found.append(functional.unfold(padded, weight.shape[2:], spread).mT.flatten(0, 1))
    return Rows(*found)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
