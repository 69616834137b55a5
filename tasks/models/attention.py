"""Attention whose two matrix products are operations of their own, as `VisionModel.net` must have it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def unfused(net: nn.Module) -> nn.Module:
    """Make both products of all attention in `net` visible, in place: timm's `fused_attn` is switched off and
    `nn.MultiheadAttention`, which mmcv and torchvision use, is replaced. Load weights before: parameters are renamed.

    The result is the float model. It may differ from the fused one by rounding, but not from itself when intercepted.
    """
    for module in list(net.modules()):
        if isinstance(getattr(module, "fused_attn", None), bool):
            setattr(module, "fused_attn", False)  # noqa: B010 - which torch types as a tensor or a module
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention:
                setattr(module, name, SelfAttention(child))
    return net


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of one tensor with itself, without masks; called as that one is.

    Query, key and value come from one linear layer and the rest are plain operations, as in timm's attention, so that
    every method treats it as that.

    Args:
        fused: the module whose parameters it takes over.

    Raises:
        NotImplementedError: `fused` has projections apart for query, key and value, or adds tokens.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if fused.in_proj_weight is None or fused.bias_k is not None or fused.add_zero_attn:
            raise NotImplementedError("attention with separate projections or added tokens cannot be quantized")
        self.heads, self.dropout, self.batch_first = fused.num_heads, fused.dropout, fused.batch_first
        self.qkv = nn.Linear(fused.embed_dim, 3 * fused.embed_dim, bias=fused.in_proj_bias is not None, device="meta")
        self.qkv.weight, self.qkv.bias = fused.in_proj_weight, fused.in_proj_bias
        self.proj = fused.out_proj
        self.train(fused.training)

    def forward(  # noqa: PLR0917 - torch's own order
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Result like `query` (tokens, n, d), or (n, tokens, d) if `batch_first`; weights (n, tokens, tokens), the mean
        over heads, or (n, heads, tokens, tokens) unless `average_attn_weights`.

        Raises:
            NotImplementedError: query, key and value are not the same, or there is a mask.
        """
        if not (_same(query, key) and _same(query, value) and key_padding_mask is None and attn_mask is None):
            raise NotImplementedError("only attention of one tensor with itself, without masks, can be quantized")
        x = query if self.batch_first else query.transpose(0, 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        out = self.proj((weights @ v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        # A sum, since a mean would count as pooling, whose result has to be quantized.
        return out, weights.sum(1) / self.heads if average_attn_weights else weights


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether both are one tensor, perhaps transposed twice (mmcv does that to query, key and value one by one)."""
    # Storages, not pointers to data, which tensors have none of while torch exports the network.
    return a is b or bool(
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )
