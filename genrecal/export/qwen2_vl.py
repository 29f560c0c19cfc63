"""Qwen2-VL as three modules that trace into ONNX graphs for every image size, and their Optimum configs.

    pixel_values_NE, image_grid_thw_I3 -> vision_encoder -> image_features_MD
    input_ids_BS -> embed_tokens -> inputs_embeds_BSD
    inputs_embeds_BSD, attention_mask_BT, position_ids_3BS, past -> decoder -> logits_BSV, present

Shapes: N patches and M = N / 4 image tokens of all I images together, E = channels * 2 * patch * patch,
D hidden, B batch, S new positions, T = past + S positions, V vocabulary, G segments (one a frame),
L patches of the longest segment, H heads, C = D / H.

Why transformers' own vision module is not exported: it turns the grid into Python numbers, so tracing
freezes the grid of the example image; the graph then fails on every other image size. Here rotary
positions and attention segments are tensor operations on the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn


class VisionEncoder(nn.Module):
    """The image encoder with its merger; equal to transformers' `model.visual` on any grid."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.model.visual
        self.config = model.config
        # A convolution whose stride is its kernel is one matrix product, and those quantize.
        kernel = self.visual.patch_embed.proj.weight.detach()
        self.patch_weight_ED = nn.Parameter(kernel.flatten(1).T.contiguous(), requires_grad=False)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> dict[str, Tensor]:
        """pixel_values_NE and the int64 grid (time, height, width in patches)_I3 -> image_features_MD."""
        visual, merger = self.visual, self.visual.merger
        rows_N, columns_N, source_GL, bias_GL, slot_N = _layout(
            pixel_values.shape[0], image_grid_thw, visual.spatial_merge_size
        )
        # The leading 1 makes linear layers export as MatMul, which quantizes, instead of Gemm.
        x_1ND = (pixel_values @ self.patch_weight_ED)[None]
        places_N2 = torch.stack([rows_N, columns_N], 1).to(x_1ND.dtype)
        angles_NC = (places_N2[:, :, None] * visual.rotary_pos_emb.inv_freq).flatten(1).repeat(1, 2)
        cos_N1C, sin_N1C = angles_NC.cos()[:, None], angles_NC.sin()[:, None]
        for block in visual.blocks:
            attention = block.attn
            qkv_N3HC = attention.qkv(block.norm1(x_1ND))[0].unflatten(-1, (3, attention.num_heads, -1))
            q_NHC, k_NHC, v_NHC = qkv_N3HC.unbind(1)
            q_NHC, k_NHC = (z * cos_N1C + _rotate_half(z) * sin_N1C for z in (q_NHC, k_NHC))
            # Segments become a batch padded to the longest, so the bias grows with the patches and the
            # scores with the square of one image's patches, not of all images'.
            q, k, v = (z[source_GL].transpose(1, 2) for z in (q_NHC, k_NHC, v_NHC))
            scores_GHLL = q @ k.transpose(2, 3) * attention.scaling + bias_GL[:, None, None]
            mixed_GLHC = (scores_GHLL.softmax(-1) @ v).transpose(1, 2)
            x_1ND = x_1ND + attention.proj(mixed_GLHC.flatten(0, 1).flatten(1)[slot_N][None])
            x_1ND = x_1ND + block.mlp(block.norm2(x_1ND))
        merged = merger.ln_q(x_1ND).reshape(1, -1, merger.hidden_size)
        return {"image_features": merger.mlp(merged)[0]}


def _layout(patches: int | Tensor, grid_I3: Tensor, merge: int) -> tuple[Tensor, ...]:
    """Where each patch stands in its image, and how segments map to patches and back.

    Patches come image by image, frame by frame, and within a frame in blocks of merge x merge.

    Returns:
        rows_N, columns_N: the place of each patch in its frame.
        source_GL: the patch at each place of each segment (padding repeats a patch).
        bias_GL: 0 where `source_GL` is a patch of the segment, else the lowest float.
        slot_N: the place of each patch in the flattened G * L places.
    """
    times_I, heights_I, widths_I = grid_I3.unbind(1)
    area_I = heights_I * widths_I
    end_I = (times_I * area_I).cumsum(0)
    start_I = end_I - times_I * area_I

    index_N = torch.arange(patches, device=grid_I3.device)
    image_N = (index_N[:, None] >= end_I[None]).sum(1)
    offset_N = index_N - start_I[image_N]
    area_N = area_I[image_N]
    frame_N, place_N = offset_N // area_N, offset_N % area_N
    blocks_across_N = widths_I[image_N] // merge
    block_N = place_N // (merge * merge)
    rows_N = block_N // blocks_across_N * merge + place_N // merge % merge
    columns_N = block_N % blocks_across_N * merge + place_N % merge

    # An image has as many segments as the longest clip has frames: one, unless a video is among them.
    place_L = torch.arange(area_I.max(), device=grid_I3.device)
    frame_F = torch.arange(times_I.max(), device=grid_I3.device)
    first_IF = start_I[:, None] + frame_F * area_I[:, None]
    valid_IFL = (frame_F[:, None] < times_I[:, None, None]) & (place_L < area_I[:, None, None])
    source_GL = torch.where(valid_IFL, first_IF[..., None] + place_L, 0).flatten(0, 1)
    lowest = torch.finfo(torch.float32).min
    bias_GL = torch.where(valid_IFL, 0.0, lowest).flatten(0, 1)
    slot_N = (image_N * times_I.max() + frame_N) * area_I.max() + place_N
    return rows_N, columns_N, source_GL, bias_GL, slot_N


def _rotate_half(z: Tensor) -> Tensor:
    first, second = z.chunk(2, -1)
    return torch.cat([-second, first], -1)


class EmbedTokens(nn.Module):
    """The token embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.config = model.config

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """input_ids_BS -> inputs_embeds_BSD."""
        return {"inputs_embeds": self.embedding(input_ids)}


class Decoder(nn.Module):
    """The language model with its head; a past of length 0 is the prefill."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.head = model.lm_head
        self.config = model.config

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool = True,
    ) -> dict[str, Any]:
        """inputs_embeds_BSD, attention_mask_BT, position_ids_3BS and the past -> logits_BSV, the present."""
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return {"logits": self.head(output.last_hidden_state), "past_key_values": output.past_key_values}


class VisionEncoderConfig(OnnxConfig):
    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "num_patches"}, "image_grid_thw": {0: "num_images"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_features": {0: "num_image_tokens"}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        vision, merge = self._config.vision_config, self._config.vision_config.spatial_merge_size
        # Two images of unequal area, so that no size of the example can pass for a constant.
        grid_I3 = torch.tensor([[1, 2 * merge, 3 * merge], [1, 4 * merge, 1 * merge]], dtype=torch.int64)
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {"pixel_values": torch.rand(int(grid_I3.prod(1).sum()), width), "image_grid_thw": grid_I3}


class EmbedTokensConfig(OnnxConfig):
    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"input_ids": {0: "batch_size", 1: "sequence_length"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"inputs_embeds": {0: "batch_size", 1: "sequence_length"}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        return {"input_ids": torch.arange(10).reshape(2, 5)}


class DecoderConfig(OnnxConfig):
    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    use_past = True  # Optimum's patcher reads it: the module must be called with its cache switched on

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "inputs_embeds": {0: "batch_size", 1: "sequence_length"},
            "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
            "position_ids": {1: "batch_size", 2: "sequence_length"},
            **self._cache("past_key_values", "past_sequence_length"),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {
            "logits": {0: "batch_size", 1: "sequence_length"},
            **self._cache("present", "total_sequence_length"),
        }

    def _cache(self, prefix: str, length: str) -> dict[str, dict[int, str]]:
        layers = range(self._config.get_text_config().num_hidden_layers)
        return {
            f"{prefix}.{layer}.{part}": {0: "batch_size", 2: length}
            for layer in layers
            for part in ("key", "value")
        }

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        text = self._config.get_text_config()
        batch, new, past = 2, 5, 7
        head = text.hidden_size // text.num_attention_heads

        def cache() -> Tensor:
            return torch.rand(batch, text.num_key_value_heads, past, head)

        return {
            "inputs_embeds": torch.rand(batch, new, text.hidden_size),
            "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
            "position_ids": torch.arange(past, past + new).expand(3, batch, new).contiguous(),
            "past_key_values": [(cache(), cache()) for _ in range(text.num_hidden_layers)],
        }
