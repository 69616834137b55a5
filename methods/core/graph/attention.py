"""Attention maps of a traced network: where they are read, and which of their columns are image patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from methods.core.graph.flow import TRACED_IMAGES, Op
from methods.core.graph.intercept import OUTPUT, OpKey
from methods.core.graph.structure import NotATransformerError, find_blocks, fit_grid, patch_grid, windowed
from methods.core.graph.trace import Trace

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
        NotATransformerError: the network has no transformer block, its attention is not a product of queries and keys,
            or its tokens are not a grid of patches.
    """
    found = []
    blocks = find_blocks(trace)
    in_windows, whole = windowed(trace), patch_grid(trace)
    for block in blocks:
        softmax = trace.by_key[block.softmax]
        rows, heads, _, tokens = softmax.shape
        windows = rows // TRACED_IMAGES
        layout = _windows(tokens, windows, whole) if in_windows else _whole(tokens, whole)
        if layout is None:
            raise NotATransformerError(
                f"the {tokens} tokens of {block.softmax} in {windows} windows are not a grid of patches of an image, "
                f"which has {whole[0]}x{whole[1]}"
            )
        products = (query_key_product(trace, softmax).key, OUTPUT)
        found.append(Attention((softmax.key, OUTPUT), products, heads, windows, *layout))
    return found


def query_key_product(trace: Trace, softmax: Op) -> Op:
    """The operation that made softmax's input; of a sum, the matrix product that biases and masks were added to.

    Raises:
        NotATransformerError: there is none.
    """
    op: Op | None = softmax
    while op is not None and op.key.kind != "matmul":
        sources = [trace.by_key[key] for operand in op.operands for key in operand.ops]
        # A position bias may come from a small network of its own, which no image changes.
        op = next((source for source in sources if source.batched), None)
    if op is None:
        raise NotATransformerError(f"no product of queries and keys was found before {softmax.key}")
    return op


def _whole(tokens: int, grid: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """How many of `tokens` are class and register tokens, and the grid of the others; `grid` is the whole image's."""
    found = fit_grid(tokens, grid)
    return None if found is None else (tokens - found[0] * found[1], found)


def _windows(tokens: int, windows: int, grid: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """The same for windows, which have no class token: together they must cover the image's grid, or that halved.

    A window's sides are not recorded, so they are the factors whose ratio is nearest to the image's.
    """
    sides = [(a, tokens // a) for a in range(1, tokens + 1) if tokens % a == 0]
    height, width = min(sides, key=lambda side: abs(math.log(side[0] * grid[1] / (side[1] * grid[0]))))
    h, w = grid
    while True:
        # Networks pad where a window is larger than what is left of the image.
        if windows == -(-h // height) * -(-w // width):
            return 0, (height, width)
        if (h, w) == (1, 1):
            return None
        h, w = (h + 1) // 2, (w + 1) // 2


def patch_attention(weights: Tensor, attention: Attention) -> Tensor:
    """What the image attends to: (rows, heads, patches) of weights (rows, heads, tokens, tokens).

    The attention that the first token pays to them if it is not a patch: the class token, or the first register where a
    network has registers alone, since a trace does not tell the two apart. Else the mean over all queries.
    """
    if attention.prefix:
        return weights[:, :, 0, attention.prefix :]
    return weights.mean(2)


def between_patches(maps: Tensor, attention: Attention) -> Tensor:
    """Maps (rows, heads, tokens, tokens) without class and register tokens: (rows, heads, patches, patches)."""
    return maps[:, :, attention.prefix :, attention.prefix :]
