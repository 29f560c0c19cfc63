"""What differs between the families that can be exported, as data: the vision encoder alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import build as layout
from genrecal.core.errors import ModelError
from genrecal.export import decoder, llava_vision, qwen_vision, tile_vision
from genrecal.export.graph_config import GraphConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One ONNX graph: the module that is traced, made from the whole model, and its Optimum config."""

    module: Callable[[Any], Any]
    config: type[GraphConfig]


QWEN_VISION = Graph(module=qwen_vision.VisionEncoder, config=qwen_vision.VisionEncoderConfig)
IDEFICS3_VISION = Graph(module=tile_vision.Idefics3Encoder, config=tile_vision.Idefics3EncoderConfig)
# model_type -> its vision encoder
FAMILIES: dict[str, Graph] = {
    "idefics3": IDEFICS3_VISION,
    "internvl": Graph(module=tile_vision.InternVLEncoder, config=tile_vision.InternVLEncoderConfig),
    "llava_onevision": Graph(
        module=llava_vision.LlavaOnevisionEncoder, config=llava_vision.LlavaOnevisionEncoderConfig
    ),
    "qwen2_5_vl": QWEN_VISION,
    "qwen2_vl": QWEN_VISION,
    "smolvlm": IDEFICS3_VISION,
}
# The same for every family.
LANGUAGE: dict[str, Graph] = {
    layout.EMBED_TOKENS: Graph(module=decoder.EmbedTokens, config=decoder.EmbedTokensConfig),
    layout.DECODER: Graph(module=decoder.Decoder, config=decoder.DecoderConfig),
}


def graphs_of(model_type: str | None, *, where: Path | str) -> dict[str, Graph]:
    """The graphs of a family by their names, in the order of `edge.build.GRAPHS`.

    Raises:
        ModelError: no such family; `where` is what the error names.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"model_type '{model_type}' cannot be exported",
            where=where,
            fix=f"Supported: {', '.join(FAMILIES)}",
        )
    return {layout.VISION_ENCODER: FAMILIES[model_type], **LANGUAGE}
