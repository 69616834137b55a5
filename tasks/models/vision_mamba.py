"""Vision Mamba (Vim; Zhu et al., ICML 2024) in plain torch: blocks of selective scans over an image's patches.

The scan is one operation (`selective_scan`) that modes of torch see as one, as they do its own functions: its inputs
can be quantized, and its steps are not operations of the network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

KERNEL = 4  # tokens that the causal convolution before a scan sees
STEP = (1e-3, 1e-1)  # range of the scan's steps at the start of training (Mamba)


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:  # noqa: PLR0917 - its usual signature
    """The selective state-space model of Mamba (Gu and Dao, 2023, algorithm 2), token by token in float.

    h_t = exp(delta_t a) h_(t-1) + delta_t x_t b_t with h before the first token 0, and y_t = c_t h_t + d x_t.

    Args:
        x: (n, tokens, channels).
        delta: steps, positive, like `x`.
        a: (channels, states), negative.
        b: (n, tokens, states), what enters the states.
        c: like `b`, what is read from them.
        d: (channels,).

    Returns:
        y, like `x`.
    """
    inputs = (x, delta, a, b, c, d)
    if has_torch_function(inputs):
        found: Tensor = handle_torch_function(selective_scan, inputs, *inputs)
        return found
    # States before channels, which are many, so that rows are long. Only what needs the step before is in the loop.
    kept = torch.exp(delta[:, :, None] * a.T)
    added = (delta * x)[:, :, None] * b[..., None]
    state = torch.zeros_like(added[:, 0])
    states = []
    for share, new in zip(kept.unbind(1), added.unbind(1), strict=True):
        state = torch.addcmul(new, share, state)
        states.append(state)
    return (torch.stack(states, 1) * c[..., None]).sum(2) + x * d


class Scan(nn.Module):
    """One direction of a block: causal depthwise convolution, SiLU, a scan whose steps, b and c come from its input.

    Args:
        channels: of the tokens.
        states: of each channel.
        rank: of the map from tokens to steps.
    """

    def __init__(self, channels: int, states: int, rank: int) -> None:
        super().__init__()
        self.split = (rank, states, states)
        self.conv = nn.Conv2d(channels, channels, (1, KERNEL), groups=channels)
        self.x_proj = nn.Linear(channels, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.a_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.empty(channels).uniform_(math.log(STEP[0]), math.log(STEP[1])).exp()
        with torch.no_grad():  # softplus of the bias is the step
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, channels) to tokens."""
        maps = functional.pad(x.transpose(1, 2)[:, :, None], (KERNEL - 1, 0))
        x = functional.silu(self.conv(maps)).squeeze(2).transpose(1, 2)
        step, b, c = self.x_proj(x).split(self.split, dim=-1)
        return selective_scan(x, functional.softplus(self.dt_proj(step)), -torch.exp(self.a_log), b, c, self.d)


class Block(nn.Module):
    """Norm, two scans in opposite directions under one gate, and the residual sum.

    The reference gates either scan and then adds them, which is the same function.
    """

    def __init__(self, width: int, channels: int, states: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.forward_scan = Scan(channels, states, rank)
        self.backward_scan = Scan(channels, states, rank)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, width) to tokens."""
        values, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        both = self.forward_scan(values) + self.backward_scan(values.flip(1)).flip(1)
        mixed: Tensor = self.out_proj(both * functional.silu(gate))
        return x + mixed


class VisionMamba(nn.Module):
    """Patches with learned positions, the class token among them in the middle, blocks, and a head on that token.

    Args:
        img_size: of the square images.
        patch_size: side of a patch.
        in_chans: channels of the images.
        num_classes: outputs.
        embed_dim: width of the tokens.
        depth: blocks.
        expand: channels of a scan for each of the width.
        states: of each channel of a scan.
    """

    # As timm's classifiers have them, for training.
    num_prefix_tokens = 0  # when patches are dropped
    ordered_tokens = True  # those that are left keep their order

    def __init__(  # noqa: PLR0917 - timm's names
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        expand: int = 2,
        states: int = 16,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        patches = (img_size // patch_size) ** 2
        self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.positions = nn.Parameter(torch.empty(1, patches, embed_dim))
        self.patch_drop: nn.Module = nn.Identity()
        channels, rank = expand * embed_dim, math.ceil(embed_dim / 16)
        self.blocks = nn.Sequential(*(Block(embed_dim, channels, states, rank) for _ in range(depth)))
        self.norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.head = nn.Linear(embed_dim, num_classes)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def no_matrices(self) -> frozenset[str]:
        """Parameters of two axes that map nothing to nothing, which optimisers of matrices should leave alone."""
        return frozenset(name for name, _ in self.named_parameters() if name.endswith(".a_log"))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions
        x = self.patch_drop(x)
        middle = x.shape[1] // 2
        token = self.class_token.expand(len(x), -1, -1)
        x = self.blocks(torch.cat([x[:, :middle], token, x[:, middle:]], dim=1))
        logits: Tensor = self.head(self.norm(x)[:, middle])
        return logits
