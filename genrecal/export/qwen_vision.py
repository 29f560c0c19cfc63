"""The vision encoders of Qwen2-VL and Qwen2.5-VL as a module that traces for every image size.

    pixel_values_NE, image_grid_thw_I3 -> image_features_MD

Why transformers' own modules are not exported: they turn the grid into Python numbers, so tracing freezes
the grid of the example image; the graph then fails on every other one. Here rotary positions, segments of
attention and windows are tensor operations on the grid.

Shapes: N patches and M = N / merge^2 image tokens of all I images together, E values of a patch, D hidden,
G segments, L places of a segment, H heads, C = D / H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genrecal.export.graph_config import GraphConfig
from genrecal.export.vision_attention import attend


class VisionEncoder(nn.Module):
    """The encoder with its merger; equal to transformers' `model.visual` on any grid."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.model.visual
        self.config = model.config
        vision = model.config.vision_config
        self.form = vision._attn_implementation
        # Qwen2.5-VL: all other blocks attend within windows.
        self.whole_blocks = getattr(vision, "fullatt_block_indexes", range(vision.depth))
        if len(self.whole_blocks) < vision.depth:
            self.window = vision.window_size // vision.spatial_merge_size // vision.patch_size

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> dict[str, Tensor]:
        """pixel_values_NE and the int64 grid (time, height, width in patches)_I3 -> image_features_MD."""
        visual, merger = self.visual, self.visual.merger
        places = _places(pixel_values.shape[0], image_grid_thw, visual.spatial_merge_size)
        frames = _frames(places)
        windows = _windows(places, self.window) if len(self.whole_blocks) < len(visual.blocks) else frames
        # A convolution whose stride is its kernel is one matrix product, and those quantize.
        patch_weight_DE = visual.patch_embed.proj.weight.flatten(1)
        # The leading 1 makes linear layers export as MatMul, which quantizes, instead of Gemm.
        x_1ND = (pixel_values.to(patch_weight_DE.dtype) @ patch_weight_DE.T)[None]
        places_N2 = torch.stack([places.row_N, places.column_N], 1).float()
        angles_NC = (places_N2[:, :, None] * visual.rotary_pos_emb.inv_freq.float()).flatten(1).repeat(1, 2)
        cos_N1C, sin_N1C = angles_NC.cos()[:, None], angles_NC.sin()[:, None]
        for number, block in enumerate(visual.blocks):
            segments = frames if number in self.whole_blocks else windows
            attention = block.attn
            qkv_N3HC = attention.qkv(block.norm1(x_1ND))[0].unflatten(-1, (3, attention.num_heads, -1))
            q_NHC, k_NHC, v_NHC = qkv_N3HC.unbind(1)
            q_NHC, k_NHC = (_rotate(z, cos_N1C, sin_N1C) for z in (q_NHC, k_NHC))
            # Segments become a batch, padded to the longest.
            q, k, v = (z[segments.source_GL].transpose(1, 2) for z in (q_NHC, k_NHC, v_NHC))
            mixed_GLHC = attend(q, k, v, segments.valid_GL, attention.scaling, form=self.form)
            mixed_ND = mixed_GLHC.flatten(2).flatten(0, 1)[segments.slot_N]
            x_1ND = x_1ND + attention.proj(mixed_ND[None])
            x_1ND = x_1ND + block.mlp(block.norm2(x_1ND))
        merged = merger.ln_q(x_1ND).reshape(1, -1, merger.hidden_size)
        return {"image_features": merger.mlp(merged)[0].float()}


class _Places(NamedTuple):
    """Where each patch stands."""

    frame_N: Tensor
    """The number of its frame among all frames of all images."""
    first_N: Tensor
    """The number of that frame's first patch."""
    row_N: Tensor
    column_N: Tensor
    height_N: Tensor
    """Of its image, in patches."""
    width_N: Tensor
    merge: int


class _Segments(NamedTuple):
    """Which patches attend to each other."""

    source_GL: Tensor
    """The patch at each place of each segment; padding repeats a patch."""
    valid_GL: Tensor
    """False at padding."""
    slot_N: Tensor
    """The place of each patch in the flattened G * L places."""


def _places(patches: int | Tensor, grid_I3: Tensor, merge: int) -> _Places:
    """Patches come image by image, frame by frame, and within a frame in blocks of merge x merge."""
    times_I, heights_I, widths_I = grid_I3.unbind(1)
    area_I = heights_I * widths_I
    end_I = (times_I * area_I).cumsum(0)
    index_N = torch.arange(patches, device=grid_I3.device)
    image_N = (index_N[:, None] >= end_I[None]).sum(1)
    area_N, height_N, width_N = area_I[image_N], heights_I[image_N], widths_I[image_N]
    offset_N = index_N - (end_I - times_I * area_I)[image_N]
    place_N = offset_N % area_N
    block_N, blocks_across_N = place_N // (merge * merge), width_N // merge
    return _Places(
        frame_N=(times_I.cumsum(0) - times_I)[image_N] + offset_N // area_N,
        first_N=index_N - place_N,
        row_N=block_N // blocks_across_N * merge + place_N // merge % merge,
        column_N=block_N % blocks_across_N * merge + place_N % merge,
        height_N=height_N,
        width_N=width_N,
        merge=merge,
    )


def _frames(places: _Places) -> _Segments:
    """Whole frames: a still image attends to itself alone."""
    longest = (places.height_N * places.width_N).max()
    index_N = torch.arange(places.frame_N.shape[0], device=places.frame_N.device)
    slot_N = places.frame_N * longest + index_N - places.first_N
    return _segments(slot_N, places.frame_N.max() + 1, longest)


def _windows(places: _Places, size: int) -> _Segments:
    """Windows of size x size image tokens within each frame; at its right and lower ends they are smaller."""
    width = places.merge * size
    rows_N, columns_N = ((length + width - 1) // width for length in (places.height_N, places.width_N))
    # Windows of the frames before: a window count for every patch that is the first of its frame.
    index_N = torch.arange(places.frame_N.shape[0], device=places.frame_N.device)
    counts_N = torch.where(index_N == places.first_N, rows_N * columns_N, 0)
    before_N = counts_N.cumsum(0)[places.first_N] - counts_N[places.first_N]
    window_N = before_N + places.row_N // width * columns_N + places.column_N // width
    slot_N = window_N * width * width + places.row_N % width * width + places.column_N % width
    return _segments(slot_N, counts_N.sum(), torch.tensor(width * width))


def _segments(slot_N: Tensor, count: Tensor, length: Tensor) -> _Segments:
    index_N = torch.arange(slot_N.shape[0], device=slot_N.device)
    # Places that no patch takes stay -1.
    source_P = torch.full_like(torch.arange(count * length, device=slot_N.device), -1)
    source_GL = source_P.scatter(0, slot_N, index_N).reshape(count, length)
    return _Segments(source_GL=source_GL.clamp(min=0), valid_GL=source_GL >= 0, slot_N=slot_N)


def _rotate(z_NHC: Tensor, cos_N1C: Tensor, sin_N1C: Tensor) -> Tensor:
    """Rotary positions, in float32 in every precision, as transformers computes them."""
    z = z_NHC.float()
    first, second = z.chunk(2, -1)
    return (z * cos_N1C + torch.cat([-second, first], -1) * sin_N1C).to(z_NHC.dtype)


class VisionEncoderConfig(GraphConfig):
    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "num_patches"}, "image_grid_thw": {0: "num_images"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_features": {0: "num_image_tokens"}}

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        return {"image_features": {1: self._config.get_text_config().hidden_size}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        vision, merge = self._config.vision_config, self._config.vision_config.spatial_merge_size
        # Two images of unequal area, so that no size of the example can pass for a constant.
        grid_I3 = torch.tensor([[1, 2 * merge, 3 * merge], [1, 4 * merge, 1 * merge]], dtype=torch.int64)
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {"pixel_values": torch.rand(int(grid_I3.prod(1).sum()), width), "image_grid_thw": grid_I3}
