"""The authors' config.json -> the config of transformers' own classes.

    vision_config (InternViT)            -> vision_config (InternVLVisionConfig)
    llm_config (Qwen2, Llama, InternLM2) -> text_config (Qwen2Config, LlamaConfig)
    force_image_size, downsample_ratio   -> image_seq_length

Every key is carried over, checked against the one value that the native class can express, or named as
dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import InternVLConfig, PretrainedConfig

from genrecal.convert.source import Source
from genrecal.core.errors import ModelError
from genrecal.models.nvlm import NvlmConfig

# llm_config's architecture: the native model type. InternLM2 is a Llama whose weights are packed otherwise.
LANGUAGE_MODELS = {
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
    "InternLM2ForCausalLM": "llama",
}
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "attention_dropout",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
QWEN2_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
BIAS_KEYS = ("bias", "attention_bias")
# InternViT's name: (the native one, InternViT's default where the file has none).
VISION_KEYS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", 3200),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "intermediate_size": ("intermediate_size", 12800),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "hidden_act": ("hidden_act", "gelu"),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("projection_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "num_channels": ("num_channels", 3),
}
# Keys that the native classes can express with one value only: (default, what they can).
FIXED = {
    "select_layer": (-1, -1),  # the encoder's last layer
    "ps_version": ("v1", "v2"),  # height and width swapped back after the pixel shuffle
    "pad2square": (False, False),
    "use_backbone_lora": (0, 0),
    "use_llm_lora": (0, 0),
}
FIXED_TEXT = {"moe_config": (None, None), "mlp_bias": (False, False)}
FIXED_VISION = {"use_moe": (False, False)}
# The norm of queries and keys has this epsilon in the native class, whatever the config says.
QK_NORM_EPS = 1e-6
TOP_KEYS = (
    "force_image_size",
    "downsample_ratio",
    "dynamic_image_size",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "use_thumbnail",
    "template",
    "system_message",
    "vision_config",
    "llm_config",
    "torch_dtype",
    "tie_word_embeddings",
)
# What transformers itself writes into every config, sampling settings of old versions among it.
HOUSEKEEPING = set(PretrainedConfig().to_dict()) | {"auto_map", "model_type", "architectures", "torch_dtype"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedConfig:
    """The native config, and what the authors' one says beside it."""

    config: InternVLConfig
    dropped: tuple[str, ...]
    """Keys with a value that the native config has no place for."""


def tile_size(source: Source) -> int:
    """Edge of a tile in pixels."""
    return source.config.get("force_image_size") or _vision_config(source.config)["image_size"]


def tokens_per_tile(source: Source) -> int:
    """Image tokens that stand for one tile."""
    patches = tile_size(source) // _vision_config(source.config)["patch_size"]
    return int(patches**2 * source.config.get("downsample_ratio", 0.5) ** 2)


def convert_config(source: Source, *, image_token_id: int, tied: bool) -> ConvertedConfig:
    """The native config of `source`.

    Args:
        source: the checkpoint.
        image_token_id: of the token that image features replace.
        tied: whether the head is the embedding, so that there is no weight of its own for it.

    Raises:
        ModelError: a part is missing, or has a value that the native classes cannot express.
    """
    top, where = source.config, source.folder / "config.json"
    vision, text = (_part(top, name, where) for name in ("vision_config", "llm_config"))
    for part, fixed, name in (
        (top, FIXED, ""),
        (vision, FIXED_VISION, "vision_config."),
        (text, FIXED_TEXT, "llm_config."),
    ):
        _check_fixed(part, fixed, name, where)
    native_vision = _vision_config(top)
    if native_vision["use_qk_norm"] and native_vision["layer_norm_eps"] != QK_NORM_EPS:
        raise ModelError(
            f"layer_norm_eps is {native_vision['layer_norm_eps']}, not {QK_NORM_EPS} as qk_normalization needs",
            where=where,
        )
    dtype = top.get("torch_dtype") or text.get("torch_dtype")
    native = {
        "vision_config": native_vision,
        "text_config": _text_config(text, tied=tied, where=where),
        "image_token_id": image_token_id,
        "image_seq_length": tokens_per_tile(source),
        "downsample_ratio": top.get("downsample_ratio", 0.5),
        "tie_word_embeddings": tied,
        "dtype": dtype,
    }
    if source.layout == "NVLM_D":
        config: InternVLConfig = NvlmConfig(**native, architectures=["NvlmForConditionalGeneration"])
    else:
        config = InternVLConfig(**native, architectures=["InternVLForConditionalGeneration"])
    dropped = [
        *_unread(top, {*TOP_KEYS, *FIXED, *_repeated(top, text)}, ""),
        *_unread(vision, {*VISION_KEYS, *FIXED_VISION}, "vision_config."),
        *_unread(
            text,
            {*TEXT_KEYS, *QWEN2_KEYS, *FIXED_TEXT, "rope_scaling", "bias", "attention_bias"},
            "llm_config.",
        ),
    ]
    return ConvertedConfig(config=config, dropped=tuple(dropped))


def _part(top: dict[str, Any], name: str, where: Path) -> dict[str, Any]:
    part = top.get(name)
    if not isinstance(part, dict):
        raise ModelError(f"has no {name}", where=where)
    return part


def _vision_config(top: dict[str, Any]) -> dict[str, Any]:
    vision = top["vision_config"]
    return {ours: vision.get(theirs, default) for theirs, (ours, default) in VISION_KEYS.items()}


def _text_config(text: dict[str, Any], *, tied: bool, where: Path) -> dict[str, Any]:
    architecture = (text.get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        known = ", ".join(LANGUAGE_MODELS)
        raise ModelError(
            f"its language model is '{architecture}', which is not known",
            where=where,
            fix=f"Known are {known}",
        )
    # NVLM-D's file calls its Qwen2 a llama; the architecture is what their code goes by.
    kind = LANGUAGE_MODELS[architecture]
    keys = TEXT_KEYS + (QWEN2_KEYS if kind == "qwen2" else ())
    native = {key: text[key] for key in keys if text.get(key) is not None}
    if kind == "llama":
        bias = "bias" if architecture == "InternLM2ForCausalLM" else "attention_bias"
        native["attention_bias"] = text.get(bias, bias == "bias")
    scaling = text.get("rope_scaling")
    if scaling is not None:
        rope_type = scaling.get("rope_type", scaling.get("type"))
        if rope_type not in ("dynamic", "linear"):
            raise ModelError(f"llm_config.rope_scaling has the type '{rope_type}'", where=where)
        native["rope_scaling"] = {"rope_type": rope_type, "factor": scaling["factor"]}
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in native]
    if missing:
        raise ModelError(f"llm_config has no {missing[0]}", where=where)
    return {"model_type": kind, "tie_word_embeddings": tied, **native}


def _check_fixed(part: dict[str, Any], fixed: dict[str, tuple[Any, Any]], name: str, where: Path) -> None:
    for key, (default, possible) in fixed.items():
        value = part.get(key, default)
        if value != possible:
            raise ModelError(
                f"{name}{key} is {value!r}; transformers' own classes can express {possible!r} alone",
                where=where,
            )


def _repeated(top: dict[str, Any], text: dict[str, Any]) -> set[str]:
    """Keys of the language model that newer versions of the authors' code repeat at the top."""
    return {key for key in top.keys() & text.keys() if top[key] == text[key]}


def _unread(part: dict[str, Any], read: set[str], name: str) -> list[str]:
    return sorted(
        name + key for key, value in part.items() if key not in read | HOUSEKEEPING and value is not None
    )
