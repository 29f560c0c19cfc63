"""Attention of the exported decoders: ONNX Runtime's GroupQueryAttention, whatever the language model is.

    q_BHSC, k_BKSC, v_BKSC (rotated) + past_BKPC + attention_mask_BT -> output_BSHC, present_BKLC

The operator writes the new keys and values behind a row's own tokens and attends causally to what was
written, so one graph serves a past that grows and a buffer of the whole length that is past and present at
once. Padding at the right end of a row's prompt is overwritten by that row's first new tokens.

transformers calls the function through its `AttentionInterface`; the cache hands it the past. Rotary
positions stay outside of the operator: its own know no position of three dimensions.

Shapes: B batch, S new positions, P places of the past, T = past + S positions, L = max(P, T), H heads,
K heads of keys and values, C head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from genrecal.core.errors import ModelError

NAME = "group_query_attention"
OPERATOR = "com.microsoft::GroupQueryAttention"


class GroupQueryAttention(torch.autograd.Function):
    """The operator in torch, and its node where torch's exporter looks for one."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BSQ: Tensor,
        k_BSN: Tensor,
        v_BSN: Tensor,
        past_k_BKPC: Tensor,
        past_v_BKPC: Tensor,
        last_B: Tensor,
        total: Tensor,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output_BSQ, with Q = H * C, and the present keys and values_BKLC.

        Args:
            q_BSQ: queries, the heads side by side; keys and values alike, with N = K * C.
            past_k_BKPC: keys so far, or a buffer with room for those to come; values alike.
            last_B: int32, the place of each row's last token.
            total: int32 scalar T.
        """
        new, places = int(q_BSQ.shape[1]), max(int(past_k_BKPC.shape[2]), int(total))
        first_B = torch.zeros_like(last_B) if new == int(total) else last_B + 1 - new
        place_BS = (first_B[:, None] + torch.arange(new)).long()

        def present(past_BKPC: Tensor, z_BSN: Tensor) -> Tensor:
            z_BKSC = z_BSN.unflatten(2, (kv_heads, -1)).transpose(1, 2)
            room = (0, 0, 0, places - past_BKPC.shape[2])
            return nn.functional.pad(past_BKPC, room).scatter(
                2, place_BS[:, None, :, None].expand_as(z_BKSC), z_BKSC
            )

        k_BKLC, v_BKLC = present(past_k_BKPC, k_BSN), present(past_v_BKPC, v_BSN)
        seen_B1SL = (torch.arange(places) <= place_BS[:, :, None])[:, None]
        q_BHSC = q_BSQ.unflatten(2, (heads, -1)).transpose(1, 2)
        k_BHLC, v_BHLC = (z.repeat_interleave(heads // kv_heads, 1) for z in (k_BKLC, v_BKLC))
        output_BHSC = nn.functional.scaled_dot_product_attention(
            q_BHSC, k_BHLC, v_BHLC, attn_mask=seen_B1SL, scale=scale
        )
        return output_BHSC.transpose(1, 2).flatten(2), k_BKLC, v_BKLC

    @staticmethod
    def symbolic(
        g: Any,
        q: Any,
        k: Any,
        v: Any,
        past_k: Any,
        past_v: Any,
        last: Any,
        total: Any,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> Any:
        outputs = g.op(
            OPERATOR,
            *(q, k, v, past_k, past_v, last, total),
            outputs=3,
            num_heads_i=heads,
            kv_num_heads_i=kv_heads,
            scale_f=scale,
            do_rotary_i=0,
        )
        # The exporter does not know the operator; what follows needs the rank and the element type.
        for output, like in zip(outputs, (q, past_k, past_v), strict=True):
            output.setType(like.type())
        return outputs


class GroupQueryCache(Cache):
    """Hands each layer's past to the operator and keeps what it gives back.

    Args:
        past: keys and values_BKPC of each layer.
        attention_mask_BT: 1 for what counts, right-padded; T counts past and new tokens.
    """

    def __init__(self, past: list[tuple[Tensor, Tensor]], attention_mask_BT: Tensor) -> None:
        super().__init__(layers=[])
        self.past = past
        self.present: list[tuple[Tensor, Tensor]] = []
        # Once for all layers: what the operator takes in the mask's place.
        self.last_B = (attention_mask_BT.sum(1) - 1).to(torch.int32)
        self.total = torch.as_tensor(attention_mask_BT.shape[1]).to(torch.int32)

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        return 0  # asked for default positions alone, and the decoder is given its own

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values as they are: the operator joins them to the past."""
        return key_states, value_states


def group_query_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    group_query_cache: GroupQueryCache,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it, [B, heads, S, C] each -> output_BSHC.

    Raises:
        ModelError: the layer attends in a way that the operator, as it is called here, does not.
    """
    if sliding_window is not None:
        raise ModelError(f"{type(module).__name__} slides a window of {sliding_window} tokens")
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{type(module).__name__} is not causal")
    # In a trace, sizes are tensors; the operator's attributes are numbers.
    heads, kv_heads, size = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    past_key, past_value = group_query_cache.past[module.layer_idx]
    output_BSQ, *present = GroupQueryAttention.apply(
        *(z.transpose(1, 2).flatten(2) for z in (query, key, value)),
        past_key,
        past_value,
        group_query_cache.last_B,
        group_query_cache.total,
        heads,
        kv_heads,
        size**-0.5 if scaling is None else scaling,
    )
    group_query_cache.present.append((present[0], present[1]))
    return output_BSQ.unflatten(2, (heads, size)), None


AttentionInterface.register(NAME, group_query_attention)
# No mask of S x T is made: the operator reads the lengths.
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
