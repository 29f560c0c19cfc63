"""The vision encoders that read tiles of one size: InternVL, Idefics3 and SmolVLM.

    pixel_values [tiles, 3, H, W] -> image_features [tiles, tokens, D]

A tile's features depend on that tile alone, so tiles of several images go in together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genrecal.export.graph_config import GraphConfig


class InternVLEncoder(nn.Module):
    """InternVL's encoder, pixel shuffle and projector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.config = model.config
        embeddings = self.model.vision_tower.embeddings
        # In a trace, transformers resizes the positions even where they fit; tiles are of one size.
        embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Normalized pixels -> image_features, a tile's in the order in which the prompt takes them."""
        features = self.model.get_image_features(pixel_values=pixel_values)
        return {"image_features": features.float()}


class Idefics3Encoder(nn.Module):
    """Idefics3's and SmolVLM's encoder and connector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = model.model.vision_model
        self.connector = model.model.connector
        self.config = model.config

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor) -> dict[str, Tensor]:
        """Normalized pixels and 1 for those that are no padding_THW -> image_features.

        transformers' own embedding goes through the tiles in Python, which a trace would count; here the
        position of a patch is computed for all tiles at once.
        """
        embeddings, patch = self.vision.embeddings, self.vision.patch_size
        x_TDHW = embeddings.patch_embedding(pixel_values.to(embeddings.patch_embedding.weight.dtype))
        # A patch counts where one of its pixels does.
        windows = pixel_attention_mask.float()[:, None]
        real_THW = nn.functional.max_pool2d(windows, patch, patch)[:, 0] > 0
        rows_TH = _buckets(real_THW[:, :, 0], embeddings.num_patches_per_side)
        columns_TW = _buckets(real_THW[:, 0], embeddings.num_patches_per_side)
        place_THW = rows_TH[:, :, None] * embeddings.num_patches_per_side + columns_TW[:, None]
        place_THW = torch.where(real_THW, place_THW, 0)
        x_TND = x_TDHW.flatten(2).transpose(1, 2) + embeddings.position_embedding(place_THW.flatten(1))
        x_TND = self.vision.encoder(inputs_embeds=x_TND, attention_mask=real_THW.flatten(1)).last_hidden_state
        return {"image_features": self.connector(self.vision.post_layernorm(x_TND)).float()}


def _buckets(real_TP: Tensor, places: int) -> Tensor:
    """Which of the `places` positions each patch along one side takes: they share the learned side evenly."""
    index_P = torch.arange(real_TP.shape[1], device=real_TP.device).float()
    fraction_TP = index_P / real_TP.sum(1, keepdim=True).float() * (1 - 1e-6)
    boundary_Q = torch.arange(1 / places, 1.0, 1 / places, device=real_TP.device)
    return (fraction_TP[..., None] >= boundary_Q).sum(-1)


class InternVLEncoderConfig(GraphConfig):
    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "num_tiles"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_features": {0: "num_tiles"}}

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        rows, columns = _patches(self._config.vision_config)
        tokens = int(rows * columns * self._config.downsample_ratio**2)
        return {"image_features": {1: tokens, 2: self._config.get_text_config().hidden_size}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        vision = self._config.vision_config
        return {"pixel_values": torch.rand(2, vision.num_channels, *_pair(vision.image_size))}


class Idefics3EncoderConfig(InternVLEncoderConfig):
    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "num_tiles"}, "pixel_attention_mask": {0: "num_tiles"}}

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        rows, columns = _patches(self._config.vision_config)
        tokens = rows * columns // self._config.scale_factor**2
        return {"image_features": {1: tokens, 2: self._config.get_text_config().hidden_size}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        inputs = super().generate_dummy_inputs()
        shape = (inputs["pixel_values"].shape[0], *_pair(self._config.vision_config.image_size))
        return {**inputs, "pixel_attention_mask": torch.ones(shape, dtype=torch.int64)}


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _patches(vision: Any) -> tuple[int, int]:
    (height, width), (rows, columns) = _pair(vision.image_size), _pair(vision.patch_size)
    return height // rows, width // columns
