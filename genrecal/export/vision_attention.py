"""Attention of the exported vision encoders: ONNX Runtime's MultiHeadAttention, or its parts.

Its fused kernels never hold the scores of a whole image (16 heads x 4,000 patches squared are 1 GB in
float32), but take no mask. A mask of keys needs none: with one more channel, 1 in every query and a large
negative number in the keys that nobody may see, the product of both is the bias.

    [q, 16] . [k, 0]         = q . k             a key that counts
    [q, 16] . [k, -6000]     = q . k - 96000     one that is padding

TensorRT takes no operator of ONNX Runtime's own: for it the same is written as two products and a softmax,
which TensorRT joins itself.

Shapes: B batch, H heads, S positions, C head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

FUSED = "multi_head_attention"
PARTS = "products_and_softmax"
OPERATOR = "com.microsoft::MultiHeadAttention"
# Fused kernels of GPUs want head sizes that are multiples of it.
CHANNELS = 8
# Both fit float16; their product, scaled, leaves nothing of an exponential.
SEEN, HIDDEN = 16.0, -6000.0


class MultiHeadAttention(torch.autograd.Function):
    """The operator in torch, and its node where torch's exporter looks for one."""

    @staticmethod
    def forward(ctx: Any, q_BSN: Tensor, k_BSN: Tensor, v_BSN: Tensor, heads: int, scale: float) -> Tensor:
        """Queries, keys and values [B, S, H * C] -> [B, S, H * C]."""
        q, k, v = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (q_BSN, k_BSN, v_BSN))
        mixed_BHSC = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return mixed_BHSC.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
        return g.op(OPERATOR, q, k, v, num_heads_i=heads, scale_f=scale).setType(q.type())


def attend(
    q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, seen_BS: Tensor | None, scale: float, *, form: str
) -> Tensor:
    """Every query mixes the values of all keys that are seen (None: all) -> [B, S, H, C].

    `form` is FUSED or PARTS.
    """
    heads, size = int(q_BHSC.shape[1]), int(q_BHSC.shape[3])
    if seen_BS is not None:
        hidden_BHS1 = torch.where(seen_BS, 0.0, HIDDEN).to(k_BHSC.dtype)[:, None, :, None]
        q_BHSC = _wider(q_BHSC, torch.full_like(q_BHSC[..., :1], SEEN))
        k_BHSC = _wider(k_BHSC, hidden_BHS1.expand_as(k_BHSC[..., :1]))
        v_BHSC = _wider(v_BHSC, torch.zeros_like(v_BHSC[..., :1]))
    if form == PARTS:
        weights_BHSS = (q_BHSC * scale @ k_BHSC.transpose(2, 3)).softmax(-1)
        return (weights_BHSS @ v_BHSC).transpose(1, 2)[..., :size]
    flat = (z.transpose(1, 2).flatten(2) for z in (q_BHSC, k_BHSC, v_BHSC))
    mixed_BSHC = MultiHeadAttention.apply(*flat, heads, scale).unflatten(2, (heads, -1))
    return mixed_BSHC[..., :size]


def _wider(z_BHSC: Tensor, channel_BHS1: Tensor) -> Tensor:
    """z with one more channel, and zeros up to a multiple of CHANNELS."""
    zeros = -(int(z_BHSC.shape[3]) + 1) % CHANNELS
    more = [torch.zeros_like(channel_BHS1).expand(-1, -1, -1, zeros)] if zeros else []
    return torch.cat([z_BHSC, channel_BHS1, *more], -1)


def fused(module: Any, *states: Any, **options: Any) -> tuple[Tensor, None]:
    """MultiHeadAttention as transformers calls an attention function."""
    return _called(module, *states, form=FUSED, **options)


def in_parts(module: Any, *states: Any, **options: Any) -> tuple[Tensor, None]:
    """The same as products and a softmax."""
    return _called(module, *states, form=PARTS, **options)


def _called(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    form: str,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attention_mask`: which keys_BS count, None for all."""
    scale = int(query.shape[3]) ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale, form=form), None


for name, function in ((FUSED, fused), (PARTS, in_parts)):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
