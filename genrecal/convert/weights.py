"""One weight of the authors' checkpoint -> the weights of transformers' own classes, by name and by shape.

    vision_model.    InternViT      attn.qkv [3 x D, D]           -> q_proj, k_proj, v_proj
    mlp1.            projector      0, 1, 3                       -> layer_norm, linear_1, linear_2
    language_model.  InternLM2      wqkv [G x (Q + 2) x H, D]     -> q_proj, k_proj, v_proj
                                    w1, w3, w2                    -> gate_proj, up_proj, down_proj
                     Qwen2, Llama   as they are

The names are those that `save_pretrained` writes. Every function works on meta tensors too, so that a whole
checkpoint is checked before the first byte is written.

Letters: G groups of query heads that share a key, Q query heads of one group, H width of a head, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from genrecal.core.errors import ModelError

VISION = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
}
VISION_LAYER = {
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
PROJECTOR = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}
INTERNLM2 = {"model.tok_embeddings": "model.embed_tokens", "model.norm": "model.norm", "output": "lm_head"}
INTERNLM2_LAYER = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# What a checkpoint may hold beside its weights, and why it is left out.
DROPPED = {r"\.rotary_emb\.inv_freq$": "a table that the config determines"}
VISION_NAME = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+?)(\.weight|\.bias)?")
INTERNLM2_NAME = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+?)(\.weight|\.bias)")
HEAD_WEIGHTS = ("language_model.lm_head.weight", "language_model.output.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the packed weights are cut by."""

    vision_width: int
    heads: int
    key_value_heads: int
    head_width: int
    internlm2: bool

    @classmethod
    def of(cls, config: Any, *, internlm2: bool) -> Shape:
        """The shape of a native config."""
        text = config.text_config
        return cls(
            vision_width=config.vision_config.hidden_size,
            heads=text.num_attention_heads,
            key_value_heads=text.num_key_value_heads,
            head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            internlm2=internlm2,
        )


def dropped_because(name: str) -> str | None:
    """Why the weight `name` is left out; None where it is not."""
    return next((reason for pattern, reason in DROPPED.items() if re.search(pattern, name)), None)


def convert_weight(name: str, weight: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    """What becomes of one weight.

    Args:
        name: the authors' name.
        weight: its tensor; a meta tensor gives meta tensors.
        shape: of the model.

    Returns:
        native names with their tensors; empty where the name is not known.

    Raises:
        ModelError: the tensor cannot be cut as its name says.
    """
    if name.startswith("vision_model."):
        return _vision(name, weight, shape)
    if name.startswith("mlp1."):
        _, place, kind = name.split(".")
        return {f"multi_modal_projector.{PROJECTOR[place]}.{kind}": weight} if place in PROJECTOR else {}
    if name.startswith("language_model."):
        return _internlm2(name, weight, shape) if shape.internlm2 else {name: weight}
    return {}


def _vision(name: str, weight: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    for theirs, ours in VISION.items():
        if name.startswith(f"vision_model.{theirs}"):
            return {name.replace(f"vision_model.{theirs}", f"vision_tower.{ours}"): weight}
    found = VISION_NAME.fullmatch(name)
    if found is None:
        return {}
    layer, part, kind = found.groups(default="")
    prefix = f"vision_tower.encoder.layer.{layer}"
    if part == "attn.qkv":
        names = [f"{prefix}.attention.{side}_proj{kind}" for side in "qkv"]
        return dict(zip(names, _unpack_qkv(name, weight, shape.vision_width), strict=True))
    if part not in VISION_LAYER:
        return {}
    # Behind the real heads NVLM-D has padding, which padding.py makes sure gives nothing.
    if part in ("attn.q_norm", "attn.k_norm"):
        weight = weight[: shape.vision_width]
    if part == "attn.proj" and kind == ".weight":
        weight = weight[:, : shape.vision_width]
    return {f"{prefix}.{VISION_LAYER[part]}{kind}": weight}


def _unpack_qkv(name: str, packed: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    """[3 x padded width, D] -> three of [width, D]."""
    if packed.shape[0] % 3 or packed.shape[0] < 3 * width:
        raise ModelError(f"has {packed.shape[0]} rows, not three times {width} or more", where=name)
    return tuple(part[:width] for part in packed.chunk(3))


def _internlm2(name: str, weight: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    for theirs, ours in INTERNLM2.items():
        if name == f"language_model.{theirs}.weight":
            return {f"language_model.{ours}.weight": weight}
    found = INTERNLM2_NAME.fullmatch(name)
    if found is None:
        return {}
    layer, part, kind = found.groups()
    prefix = f"language_model.model.layers.{layer}"
    if part == "attention.wqkv":
        names = [f"{prefix}.self_attn.{side}_proj{kind}" for side in "qkv"]
        return dict(zip(names, _unpack_wqkv(name, weight, shape), strict=True))
    if part not in INTERNLM2_LAYER:
        return {}
    return {f"{prefix}.{INTERNLM2_LAYER[part]}{kind}": weight}


def _unpack_wqkv(name: str, packed: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    """Queries [G x Q x H, D], keys [G x H, D] and values [G x H, D]; biases without D."""
    groups, queries = shape.key_value_heads, shape.heads // shape.key_value_heads
    rows = groups * (queries + 2) * shape.head_width
    if packed.shape[0] != rows:
        raise ModelError(f"has {packed.shape[0]} rows; the config says {rows}", where=name)
    rest = packed.shape[1:]
    packed_GPH = packed.unflatten(0, (groups, queries + 2, shape.head_width))
    sides = (packed_GPH[:, :queries], packed_GPH[:, queries], packed_GPH[:, queries + 1])
    return tuple(side.reshape(-1, *rest) for side in sides)
