"""Transformer blocks and attention taps, found from the data flow of a traced network."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from methods.core.graph.flow import INPUT, TRACED_IMAGES, Op, Operand
from methods.core.graph.intercept import OUTPUT, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.trace import Trace


class NotATransformerError(RuntimeError):
    """The network has no transformer blocks, or not such that their patches can be told."""


@dataclass(frozen=True)
class Piece:
    """A block of the network's residual stream: the module at `path`, whose last operation is `output`."""

    path: str
    output: OpKey


@dataclass(frozen=True)
class Block(Piece):
    """One transformer block.

    `softmax` weighs the values. `context` is the output point of attention's second product (before the projection),
    (rows, heads, tokens, d). `branch` is the point where attention's result enters the residual sum: windows are merged
    and shifted back there, so it is (n, h, w, d) or (n, prefix + h*w, d) in image order, which `branch_grid` checks.
    Of several attentions side by side in a block (parallel blocks) the first
    stands for all.
    """

    softmax: OpKey
    context: tuple[OpKey, int]
    branch: tuple[OpKey, int]


def find_blocks(trace: Trace) -> list[Block]:
    """Blocks in execution order, one per module.

    A block is the innermost module that holds a softmax over tokens, the linear layer that projects what it weighed,
    the sum of that with the residual stream, and an MLP. Norms, scales and gates may stand between. Attention over
    channels (XCiT), of one query (class attention, pooling) and that whose projection is a convolution make no block.

    Raises:
        NotATransformerError: there is none.
    """
    blocks: dict[str, Block] = {}
    upstream = _upstream(trace)
    for softmax in trace.of_kind("softmax"):
        block = _block(trace, softmax, upstream)
        if block is not None:
            blocks.setdefault(block.path, block)
    if not blocks:
        raise NotATransformerError(
            "no transformer block (attention over tokens with a residual sum, and an MLP) was found in the network"
        )
    return list(blocks.values())


def _block(trace: Trace, softmax: Op, upstream: Mapping[OpKey, int]) -> Block | None:
    if not softmax.batched or len(softmax.shape) != 4 or softmax.shape[2] == 1 < softmax.shape[3]:
        return None
    product = _first(trace, softmax, "matmul", barred=("softmax",))  # talking heads mix maps by a layer in between
    if product is None or product.shape[:3] != softmax.shape[:3]:
        return None
    projection = _first(trace, product, "linear", barred=("softmax", "matmul", "conv"))
    if projection is None or _inputs(projection) != product.shape[1] * product.shape[3]:
        return None  # attention over channels: heads x d are not the features
    found = _attention_sum(trace, softmax, projection, upstream)
    if found is None:
        return None
    residual, slot = found
    path = _common_path(softmax.key.module, residual.key.module)
    after = _mlp_sum(trace, residual)
    if after is not None:
        wider = _common_path(softmax.key.module, after.key.module)
        # In a parallel block one sum takes attention and MLP: the next one is another block's.
        if wider and _softmaxes(trace, wider) == _softmaxes(trace, path):
            path = wider
    inside = [op for op in trace.ops if _within(op, path)]
    # The layers that are neither before attention's result nor its projection: the MLP's.
    others = [op for op in inside if op.key.kind == "linear" and op.key != projection.key]
    if not path or all(_comes_from(upstream[product.key], upstream[op.key]) for op in others):
        return None
    return Block(path, inside[-1].key, softmax.key, (product.key, OUTPUT), (residual.key, slot))


@dataclass(frozen=True)
class ScanBlock(Piece):
    """A block around selective scans, in execution order. `branch` is the point where their result enters the residual
    sum, (n, tokens, d).
    """

    scans: tuple[OpKey, ...]
    branch: tuple[OpKey, int]


def find_scan_blocks(trace: Trace) -> list[ScanBlock]:
    """Blocks in execution order, one per module: the innermost one that holds a selective scan, the linear layer that
    projects its result, and the sum of that with the residual stream. Empty if there is none.
    """
    blocks: dict[str, ScanBlock] = {}
    upstream = _upstream(trace) if trace.of_kind("scan") else {}
    for scan in trace.of_kind("scan"):
        projection = _first(trace, scan, "linear", barred=("scan", "softmax", "matmul", "conv"))
        found = None if projection is None else _attention_sum(trace, scan, projection, upstream)
        if found is None:
            continue
        residual, slot = found
        path = _common_path(scan.key.module, residual.key.module)
        if not path:
            continue
        inside = [op for op in trace.ops if _within(op, path)]
        scans = tuple(op.key for op in inside if op.key.kind == "scan")
        blocks.setdefault(path, ScanBlock(path, inside[-1].key, scans, (residual.key, slot)))
    return list(blocks.values())


def find_pieces(trace: Trace) -> list[Piece]:
    """Transformer blocks and blocks around selective scans, in execution order, one per module.

    Raises:
        NotATransformerError: there is none.
    """
    found: dict[str, Piece] = {block.path: block for block in find_scan_blocks(trace)}
    try:
        found |= {block.path: block for block in find_blocks(trace)}
    except NotATransformerError:
        if not found:
            raise
    place = {op.key: number for number, op in enumerate(trace.ops)}
    return sorted(found.values(), key=lambda piece: place[piece.output])


def _first(trace: Trace, source: Op, kind: str, *, barred: Collection[str]) -> Op | None:
    """The first operation of `kind` that `source` feeds, directly or through operations that are not `barred`."""
    reached = {source.key}
    for op in _after(trace, source):
        if reached.isdisjoint(_sources(op)):
            continue
        if op.key.kind == kind:
            return op
        if op.key.kind not in barred:
            reached.add(op.key)
    return None


def _attention_sum(trace: Trace, softmax: Op, projection: Op, upstream: Mapping[OpKey, int]) -> tuple[Op, int] | None:
    """The sum of the projection's result with the residual stream, from which queries and keys come; and its slot."""
    stream, reached = upstream[softmax.key], {projection.key}
    for op in _after(trace, projection):
        if reached.isdisjoint(_sources(op)):
            continue
        if op.key.kind == "add":
            for slot, (branch, other) in enumerate(zip(op.operands, reversed(op.operands), strict=True)):
                inside = all(_comes_from(stream, upstream[key]) for key in other.ops)
                if reached & branch.ops and not reached & other.ops and _batched(other) and inside:
                    return op, slot
        reached.add(op.key)
    return None


def _mlp_sum(trace: Trace, residual: Op) -> Op | None:
    """The next sum of the residual stream, perhaps normalised, with what linear layers made of it."""
    stream, made = {residual.key}, set[OpKey]()
    for op in _after(trace, residual):
        sources = _sources(op)
        if op.key.kind == "add" and stream & sources and made & sources:
            return op
        if made & sources or (stream & sources and op.key.kind in LAYERS):
            made.add(op.key)
        elif stream & sources:
            stream.add(op.key)
    return None


def _after(trace: Trace, op: Op) -> list[Op]:
    return trace.ops[trace.ops.index(op) + 1 :]


def _sources(op: Op) -> set[OpKey]:
    return {key for operand in op.operands for key in operand.ops}


def _upstream(trace: Trace) -> dict[OpKey, int]:
    """Of every operation, those that it depends on and itself, as bits."""
    found: dict[OpKey, int] = {}
    for place, op in enumerate(trace.ops):
        bits = 1 << place
        for key in _sources(op):
            bits |= found[key]
        found[op.key] = found.get(op.key, 0) | bits
    return found


def _comes_from(later: int, earlier: int) -> bool:
    """Whether an operation with the bits `later` depends on all that `earlier` stands for."""
    return earlier & ~later == 0


def _batched(operand: Operand) -> bool:
    return bool(operand.ops) or INPUT in operand.others


def _inputs(layer: Op) -> int:
    """Input features of a linear layer, or the length of the sums of any product."""
    return layer.macs * TRACED_IMAGES // math.prod(layer.shape)


def _within(op: Op, path: str) -> bool:
    return not path or f"{op.key.module}.".startswith(f"{path}.")


def _softmaxes(trace: Trace, path: str) -> list[Op]:
    return [op for op in trace.of_kind("softmax") if op.batched and _within(op, path)]


def _common_path(first: str, second: str) -> str:
    shared = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def windowed(trace: Trace) -> bool:
    """Whether attention runs within windows (Swin): a softmax has more rows than the traced batch has images.

    Raises:
        NotATransformerError: there is no transformer block.
    """
    return any(trace.by_key[block.softmax].shape[0] > TRACED_IMAGES for block in find_blocks(trace))


def patch_grid(trace: Trace) -> tuple[int, int]:
    """Rows and columns of the patch embedding's output grid.

    It is that of the last convolution before the first block's attention which has as many places as the block has
    tokens: keys and queries may come from coarser ones (PVT, GCViT).

    Raises:
        NotATransformerError: there is no transformer block, or no convolution before it (patches may come from a linear
            layer, whose grid a trace does not show).
    """
    first = find_blocks(trace)[0]
    before = takewhile(lambda op: op.key != first.softmax, trace.ops)
    grids = [(op.shape[2], op.shape[3]) for op in before if op.key.kind == "conv" and op.batched]
    if not grids:
        raise NotATransformerError("no convolution makes the patches, so that their grid is not known")
    tokens = math.prod(trace.by_key[first.branch[0]].shape[1:-1])
    return next((grid for grid in reversed(grids) if 0 <= tokens - math.prod(grid) <= EXTRA), grids[-1])


def branch_grid(trace: Trace, block: Block, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches at the block's `branch`; `grid` is the patch embedding's.

    Raises:
        NotATransformerError: the tensor there does not hold one grid of patches per image, channels last.
    """
    images, *tokens, _ = trace.by_key[block.branch[0]].shape
    found = fit_grid(math.prod(tokens), grid)
    if images != TRACED_IMAGES or found is None or (len(tokens) == 2 and tuple(tokens) != found):
        raise NotATransformerError(
            f"where the attention of block {block.path} enters the residual sum there is no grid of an image's patches "
            f"({'x'.join(map(str, (images, *tokens)))} for {TRACED_IMAGES} images, patches {grid[0]}x{grid[1]})"
        )
    return found


EXTRA = 16  # class and register tokens that may stand before the patches


def fit_grid(tokens: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """The patch grid of the last of `tokens`: `grid`, or that halved until it fits (patches merged, odd sides padded).

    None if the tokens before it were more than class and register tokens can be.
    """
    h, w = grid
    while h * w > tokens > 0:
        h, w = (h + 1) // 2, (w + 1) // 2
    return (h, w) if 0 <= tokens - h * w <= EXTRA else None


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
