"""LLaVA-OneVision's vision encoder: the whole image, its tiles without their border, an end of every row.

    pixel_values [tiles, 3, H, W], image_sizes_12 -> image_features_MD

The first tile is the whole image; further ones cut one of the model's resolutions, in which the image stands
in the middle of a border. Which resolution it is, how much of it is border and how far the features are
thinned out follow from the image's size: here as tensor operations, for any size. One image a call.

Shapes: T tiles, N = side^2 features of a tile, D hidden, R resolutions, U x W features that are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genrecal.export.graph_config import GraphConfig

# Features that are this much more than allowed are thinned out; transformers' own constant.
SURPLUS = 1.1


class LlavaOnevisionEncoder(nn.Module):
    """Encoder, projector and packing; equal to transformers' `get_image_features` of one image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.config = model.config
        vision = model.config.vision_config
        self.tile, self.side = vision.image_size, vision.image_size // vision.patch_size
        self.most_tiles = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """Normalized pixels and the image's height and width_12 -> image_features_MD."""
        model, config, side = self.model, self.config, self.side
        hidden = model.vision_tower(
            pixel_values.to(model.image_newline.dtype), output_hidden_states=True
        ).hidden_states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        features_TND = model.multi_modal_projector(hidden)
        height, width = image_sizes[0].to(torch.float64).unbind(0)
        rows, columns = self._resolution(height, width)
        top, left, used_h, used_w = self._without_border(height, width, rows * side, columns * side)
        surplus = (used_h * used_w / (self.most_tiles * side**2)).to(torch.float64).sqrt()
        kept_h, kept_w = (
            torch.where(surplus > SURPLUS, (used / surplus).floor().long(), used) for used in (used_h, used_w)
        )
        # An image of one tile has no features to pack, and one end of a row all the same.
        alone = torch.as_tensor(features_TND.shape[0]) == 1
        kept_h, kept_w = torch.where(alone, 1, kept_h), torch.where(alone, 0, kept_w)

        y = _sources(kept_h, used_h, top)
        x = _sources(kept_w, used_w, left)
        tiles_PD = features_TND[1:].flatten(0, 1)
        packed_UWD: Any = 0
        for row_U, weight_U in y:
            for column_W, weight_W in x:
                tile_UW = row_U[:, None] // side * columns + column_W // side
                place_UW = tile_UW * side**2 + row_U[:, None] % side * side + column_W % side
                weight_UW1 = (weight_U[:, None] * weight_W)[..., None].to(tiles_PD.dtype)
                packed_UWD = packed_UWD + tiles_PD[place_UW] * weight_UW1
        ends_U1D = model.image_newline.expand(kept_h, 1, -1)
        packed_MD = torch.cat([packed_UWD, ends_U1D], 1).flatten(0, 1)
        return {"image_features": torch.cat([features_TND[0], packed_MD]).float()}

    def _resolution(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles from top to bottom and from left to right: transformers' `select_best_resolution`."""
        targets_R2 = torch.tensor(self.config.image_grid_pinpoints)
        target_h_R, target_w_R = targets_R2.to(torch.float64).unbind(1)
        scale_R = torch.minimum(target_w_R / width, target_h_R / height)
        pixels_R = (width * scale_R).floor() * (height * scale_R).floor()
        pixels_R = torch.minimum(pixels_R, width * height)
        border_R = target_h_R * target_w_R - pixels_R
        # Most of the image's pixels first, the least border second, the first of equal ones third.
        best = (pixels_R * 2.0**26 - border_R).argmax()
        tiles_2 = targets_R2[best] // self.tile
        return tiles_2[0], tiles_2[1]

    @staticmethod
    def _without_border(
        height: Tensor, width: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First row, first column, rows and columns of the image itself: transformers' `unpad_image`."""
        wide = width / height > columns / rows
        fitted_h = _round_7(height * (columns / width)).long()
        fitted_w = _round_7(width * (rows / height)).long()
        top = torch.where(wide, (rows - fitted_h) // 2, 0)
        left = torch.where(wide, 0, (columns - fitted_w) // 2)
        return top, left, rows - 2 * top, columns - 2 * left


def _round_7(value: Tensor) -> Tensor:
    return (value * 1e7).round() / 1e7


def _sources(kept: Tensor, used: Tensor, first: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Bilinear interpolation along one side: the two features that each kept one is made of, with weights."""
    place_K = torch.arange(kept).float()
    source_K = ((place_K + 0.5) * (used.float() / kept.float()) - 0.5).clamp(min=0)
    low_K = source_K.floor().long()
    high_K = torch.minimum(low_K + 1, used - 1)
    weight_K = source_K - low_K.float()
    return [(first + low_K, 1 - weight_K), (first + high_K, weight_K)]


class LlavaOnevisionEncoderConfig(GraphConfig):
    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "num_tiles"}, "image_sizes": {}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_features": {0: "num_image_tokens"}}

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        return {"image_features": {1: self._config.get_text_config().hidden_size}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        vision = self._config.vision_config
        size = max(self._config.image_grid_pinpoints, key=lambda pair: pair[0] * pair[1])
        tiles = 1 + size[0] * size[1] // vision.image_size**2
        # Wider than the resolution, so that there is a border.
        image_sizes = torch.tensor([[size[0] // 2, size[1]]], dtype=torch.int64)
        pixels = torch.rand(tiles, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": pixels, "image_sizes": image_sizes}
