"""The language model of every family as two graphs, and their Optimum configs.

    input_ids_BS -> embed_tokens -> inputs_embeds_BSD
    inputs_embeds_BSD, attention_mask_BT, position_ids, num_logits_to_keep, past -> decoder -> logits, present

Embeddings and logits are float32 in every precision, so graphs of different precisions fit together; keys
and values have the decoder's own type.

Shapes: B batch, S new positions, P places of the past, T = past + S positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genrecal.export.attention import GroupQueryCache
from genrecal.export.graph_config import GraphConfig
from genrecal.models.vlm import text_body


class EmbedTokens(nn.Module):
    """The token embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.config = model.config

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """input_ids_BS -> inputs_embeds_BSD."""
        return {"inputs_embeds": self.embedding(input_ids).float()}


class Decoder(nn.Module):
    """The language model with its head; a past of length 0 is the prefill."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = text_body(model)
        self.head = model.get_output_embeddings()
        self.config = model.config

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        past_key_values: Any,
    ) -> dict[str, Any]:
        """Logits of the last positions, and the present.

        Args:
            inputs_embeds: [B, S, D], image features in the place of image tokens.
            attention_mask: int64 [B, T], 1 for what counts; padding is at the right end of a row's prompt.
            position_ids: int64 [3, B, S] where positions have three dimensions, else [B, S].
            num_logits_to_keep: int64 scalar n, for logits of the last n positions; 0 for those of all.
            past_key_values: keys and values of each layer, [B, heads, P, head size].
        """
        cache = GroupQueryCache(past_key_values.to_legacy_cache(), attention_mask)
        output = self.language_model(
            inputs_embeds=inputs_embeds.to(self.language_model.dtype),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            group_query_cache=cache,
        )
        z_BSD = output.last_hidden_state
        first = torch.where(num_logits_to_keep > 0, z_BSD.shape[1] - num_logits_to_keep, 0)
        return {"logits": self.head(z_BSD[:, first:]).float(), "past_key_values": cache.present}


class EmbedTokensConfig(GraphConfig):
    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"input_ids": {0: "batch_size", 1: "sequence_length"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"inputs_embeds": {0: "batch_size", 1: "sequence_length"}}

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        return {"inputs_embeds": {2: self._config.get_text_config().hidden_size}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        return {"input_ids": torch.arange(10).reshape(2, 5)}


class DecoderConfig(GraphConfig):
    use_past = True  # Optimum's patcher reads it: the module must be called with its cache switched on

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        rows = 1 if self._has_three_positions else 0
        return {
            "inputs_embeds": {0: "batch_size", 1: "sequence_length"},
            "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
            "position_ids": {rows: "batch_size", rows + 1: "sequence_length"},
            "num_logits_to_keep": {},
            **self._cache({0: "batch_size", 2: "past_sequence_length"}, "past_key_values"),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {
            "logits": {0: "batch_size", 1: "num_logits"},
            **self._cache({0: "batch_size", 2: "present_sequence_length"}, "present"),
        }

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        _, kv_heads, size = self._shape
        return {
            "logits": {2: self._config.get_text_config().vocab_size},
            **self._cache({1: kv_heads, 3: size}, "present"),
        }

    @property
    def _has_three_positions(self) -> bool:
        return "mrope_section" in (self._config.get_text_config().rope_scaling or {})

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys and values, head size."""
        text = self._config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return text.num_hidden_layers, text.num_key_value_heads, size

    def _cache(self, axes: dict[int, Any], prefix: str) -> dict[str, dict[int, Any]]:
        layers = range(self._shape[0])
        return {f"{prefix}.{layer}.{part}": dict(axes) for layer in layers for part in ("key", "value")}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        text, (layers, kv_heads, size) = self._config.get_text_config(), self._shape
        batch, new, past = 2, 5, 7
        positions_BS = torch.arange(past, past + new).expand(batch, new)
        rows = (3, batch, new) if self._has_three_positions else (batch, new)

        def cache() -> Tensor:
            return torch.rand(batch, kv_heads, past, size).to(text.dtype)

        return {
            "inputs_embeds": torch.rand(batch, new, text.hidden_size),
            "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
            "position_ids": positions_BS.expand(rows).contiguous(),
            "num_logits_to_keep": torch.tensor(2),
            "past_key_values": [(cache(), cache()) for _ in range(layers)],
        }
