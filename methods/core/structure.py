"""Transformer blocks and attention taps, found from the data flow of a traced network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.core.intercept import OUTPUT, OpKey
from methods.core.trace import TRACED_IMAGES, Op, Trace


class NotATransformerError(RuntimeError):
    """No transformer block was found."""


@dataclass(frozen=True)
class Block:
    """One transformer block.

    `context` is the output point of attention's second product (before the projection), (rows, heads, tokens, d).
    `branch` is the point where attention's result enters the residual sum: windows are merged and shifted back there,
    so it is (n, h, w, d) or (n, prefix + h*w, d) in image order. `output` is the block's last operation.
    """

    path: str
    context: tuple[OpKey, int]
    branch: tuple[OpKey, int]
    output: OpKey


def find_blocks(trace: Trace) -> list[Block]:
    """Blocks in execution order: one per softmax that weighs values and is followed by an MLP.

    A block is the innermost module that holds both the softmax and the next activation function.

    Raises:
        NotATransformerError: there is none.
    """
    blocks = []
    softmaxes = trace.of_kind("softmax")
    for softmax in softmaxes:
        product = next((c for c in trace.consumers[softmax.key] if c.key.kind == "matmul"), None)
        if product is None:
            continue
        after = trace.ops[trace.ops.index(product) + 1 :]
        activation = next((op for op in after if op.key.kind == "activation"), None)
        projection = next((c for c in trace.consumers[product.key] if c.key.kind == "linear"), None)
        if activation is None or projection is None:
            continue
        path = _common_path(softmax.key.module, activation.key.module)
        residual, slot = _residual(after, projection.key)
        inside = [op for op in trace.ops if op.key.module == path or op.key.module.startswith(f"{path}.")]
        if not path or residual is None:
            continue
        blocks.append(Block(path, (product.key, OUTPUT), (residual.key, slot), inside[-1].key))
    if not blocks:
        raise NotATransformerError("no transformer block (attention followed by an MLP) was found in the network")
    return blocks


def _common_path(first: str, second: str) -> str:
    shared = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _residual(ops: list[Op], source: OpKey) -> tuple[Op | None, int]:
    for op in ops:
        if op.key.kind == "add":
            for slot, operand in enumerate(op.operands):
                if source in operand.ops:
                    return op, slot
    return None, 0


def windowed(graph: Trace) -> bool:
    """Whether attention runs within windows (Swin): a softmax has more rows than the traced batch has images."""
    return any(op.shape[0] > TRACED_IMAGES for op in graph.of_kind("softmax"))


def patch_grid(trace: Trace) -> tuple[int, int]:
    """Rows and columns of the patch embedding's output grid: of the last convolution before any attention."""
    first = trace.ops.index(trace.of_kind("softmax")[0])
    conv = [op for op in trace.ops[:first] if op.key.kind == "conv"][-1]
    return conv.shape[2], conv.shape[3]


EXTRA = 8  # class and register tokens that may stand before the patches, even where these are fewer


def fit_grid(tokens: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """The patch grid of the last of `tokens`: `grid`, or that halved until it fits (patches merged, odd sides padded).

    None if the tokens before it were more than class and register tokens can be.
    """
    h, w = grid
    while h * w > tokens > 0:
        h, w = (h + 1) // 2, (w + 1) // 2
    return (h, w) if 0 <= tokens - h * w <= max(h * w - 1, EXTRA) else None


def to_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (n, t, d) or (n, h, w, d) as a patch grid (n, h, w, d), class and register tokens dropped.

    Token sequences may be a patch-merged version of `grid` (halved k times, an odd side padded).

    Raises:
        ValueError: the token count fits no such grid.
    """
    if tokens.dim() == 4:
        return tokens
    n, t, d = tokens.shape
    found = fit_grid(t, grid)
    if found is None:
        raise ValueError(f"{t} tokens do not fit a patch grid of {grid[0]}x{grid[1]}")
    h, w = found
    return tokens[:, t - h * w :].reshape(n, h, w, d)
