"""Attention maps of a traced network: where they are read, and which of their columns are image patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from methods.core.intercept import OUTPUT, OpKey
from methods.core.structure import NotATransformerError, find_blocks, fit_grid, patch_grid, windowed
from methods.core.trace import TRACED_IMAGES, Op, Trace

Point = tuple[OpKey, int]


@dataclass(frozen=True)
class Attention:
    """One block's attention.

    `weights` is softmax's result and `products` that of its queries with its keys, before masks and position biases
    are added; both are (images * windows, heads, tokens, tokens), image-major. `windows` an image is 1 where attention
    is global. The first `prefix` tokens are class and register tokens; the rest are the patches of `grid` (rows,
    columns): of the image, or of one window.
    """

    weights: Point
    products: Point
    heads: int
    windows: int
    prefix: int
    grid: tuple[int, int]


def find_attention(trace: Trace) -> list[Attention]:
    """Attention of every transformer block, in execution order.

    Raises:
        NotATransformerError: the network has no transformer block, or its attention is no product of queries and keys.
    """
    found = []
    blocks = find_blocks(trace)
    in_windows, whole = windowed(trace), patch_grid(trace)
    for block in blocks:
        sources = [key for operand in trace.by_key[block.context[0]].operands for key in operand.ops]
        softmax = next(trace.by_key[key] for key in sources if key.kind == "softmax")
        rows, heads, _, tokens = softmax.shape
        prefix, grid = _layout(tokens, in_windows, whole)
        products = (_products(trace, softmax).key, OUTPUT)
        found.append(Attention((softmax.key, OUTPUT), products, heads, rows // TRACED_IMAGES, prefix, grid))
    return found


def _products(trace: Trace, softmax: Op) -> Op:
    """The operation that made softmax's input; of a sum, the matrix product that biases and masks were added to."""
    op: Op | None = softmax
    while op is not None and op.key.kind != "matmul":
        sources = [trace.by_key[key] for operand in op.operands for key in operand.ops]
        # A position bias may come from a small network of its own, which no image changes.
        op = next((source for source in sources if source.batched), None)
    if op is None:
        raise NotATransformerError(f"no product of queries and keys was found before {softmax.key}")
    return op


def _layout(tokens: int, in_windows: bool, grid: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """How many of `tokens` are class and register tokens, and the grid of the others; `grid` is the whole image's."""
    if not in_windows and (found := fit_grid(tokens, grid)) is not None:
        return tokens - found[0] * found[1], found
    # A window's sides are not recorded, so they are the factors whose ratio is nearest to the image's. Networks with
    # windows have no class token, and pad where a window is larger than what is left of the image.
    sides = [(a, tokens // a) for a in range(1, tokens + 1) if tokens % a == 0]
    return 0, min(sides, key=lambda side: abs(math.log(side[0] * grid[1] / (side[1] * grid[0]))))


def patch_attention(weights: Tensor, attention: Attention) -> Tensor:
    """What the image attends to: (rows, heads, patches) of weights (rows, heads, tokens, tokens).

    The attention that the first token pays to them if it is no patch: the class token, or the first register where a
    network has registers alone, since a trace does not tell the two apart. Else the mean over all queries.
    """
    if attention.prefix:
        return weights[:, :, 0, attention.prefix :]
    return weights.mean(2)


def between_patches(maps: Tensor, attention: Attention) -> Tensor:
    """Maps (rows, heads, tokens, tokens) without class and register tokens: (rows, heads, patches, patches)."""
    return maps[:, :, attention.prefix :, attention.prefix :]
