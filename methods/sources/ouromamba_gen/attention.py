"""The attention that a selective scan stands for, of tokens whose hidden states are mixed with their neighbours'.

Unrolled, h_t = Σ_(s <= t) exp(Σ_(s < r <= t) delta_r a) delta_s x_s b_s, so that token t attends to token s by
c_t exp(...) delta_s b_s. In a patched hidden state, h_t is a mean of those of the neighbourhood of t on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.graph.flow import TRACED_IMAGES
from methods.core.graph.intercept import OpKey, tap
from methods.core.graph.structure import NotATransformerError, ScanBlock
from methods.core.graph.trace import Trace


@dataclass(frozen=True)
class Layout:
    """Where the patches are among a scan's tokens: their places, in the order of `grid` (rows, columns).

    `both`: read backwards they are at the same places, so that scans in either direction have this layout. (The grid is
    then turned by half a turn, which leaves neighbours neighbours.)
    """

    places: Tensor  # (patches,)
    grid: tuple[int, int]
    both: bool


def find_layout(net: torch.nn.Module, trace: Trace, first: ScanBlock, images: Tensor) -> Layout:
    """The layout of the tokens that enter the block `first`.

    Tokens that are the same for all `images` (n >= 2, random) are no patches but class and register tokens. The grid is
    that of the convolution before the block that has as many places as there are patches.

    Raises:
        NotATransformerError: there is none.
    """
    key, slot = first.branch
    stream = (key, 1 - slot)
    _, found = tap(net, images[:TRACED_IMAGES], [stream])
    one, other = found[stream][:2]
    places = (one != other).any(-1).nonzero().flatten()
    for op in trace.ops:
        if op.key.kind == "conv" and op.shape[2] * op.shape[3] == len(places) > 1 and min(op.shape[2:]) > 1:
            backwards = len(one) - 1 - places.flip(0)
            return Layout(places, (op.shape[2], op.shape[3]), bool(torch.equal(places, backwards)))
    raise NotATransformerError(f"the {len(places)} patches before {first.path} are not a grid that a convolution made")


def neighbours(grid: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """Which patches (patches, patches) are in each other's window of side x side, themselves included."""
    rows, columns = (
        axis.flatten() for axis in torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    )
    near = (rows[:, None] - rows).abs().maximum((columns[:, None] - columns).abs())
    return near <= side // 2


def patched_attention(
    delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, layout: Layout, side: int, by_step: bool
) -> Tensor:
    """Attention (n, h, w, patches) of patches with patched hidden states to all patches, by the channels' mean steps.

    Args:
        delta: steps (n, tokens, channels).
        a: (channels, states).
        b: (n, tokens, states).
        c: like `b`.
        layout: of the tokens.
        side: of the window whose hidden states are mixed.
        by_step: mix them by their mean steps, else equally.
    """
    places = layout.places
    step = delta.mean(-1)  # (n, tokens)
    # Channels are averaged before the recursion is unrolled: a map for each of them would be as large as all tokens'
    # products with all tokens, for every state of every channel.
    decay = torch.einsum("ntd,dm->ntm", delta, a) / a.shape[0]
    upto = torch.ones(decay.shape[1], decay.shape[1]).to(decay).tril()[places]
    passed = upto @ decay  # (n, patches, states); torch's cumulative sum is not repeatable on CUDA
    reach = passed[:, :, None] - passed[:, None]  # from s (second) to t (first)
    earlier = torch.ones(len(places), len(places), dtype=torch.bool, device=delta.device).tril()
    kept = torch.exp(reach.masked_fill(~earlier[..., None], -torch.inf))
    written = step[:, places, None] * b[:, places]  # (n, s, states)
    weights = neighbours(layout.grid, side, delta.device).to(step)
    weights = weights * step[:, None, places] if by_step else weights.expand(len(step), -1, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    mixed = torch.einsum("ntk,nksm->ntsm", weights, kept)
    maps: Tensor = torch.einsum("ntm,ntsm,nsm->nts", c[:, places], mixed, written).unflatten(1, layout.grid)
    return maps


def scan_points(blocks: list[ScanBlock], *, both: bool) -> list[OpKey]:
    """The scans that are looked at: all, or of each block the first."""
    return [scan for block in blocks for scan in (block.scans if both else block.scans[:1])]
