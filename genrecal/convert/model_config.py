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

from transformers import InternVLConfig

from genrecal.convert.config_keys import (
    BIAS_KEYS,
    FIXED,
    FIXED_TEXT,
    FIXED_VISION,
    HARMLESS,
    HOUSEKEEPING,
    LANGUAGE_MODELS,
    QK_NORM_EPS,
    QWEN2_KEYS,
    TEXT_KEYS,
    TOP_KEYS,
    VISION_KEYS,
)
from genrecal.convert.source import Source
from genrecal.convert.weights import HEAD_WEIGHTS
from genrecal.core.errors import ModelError
from genrecal.models.nvlm import NvlmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedConfig:
    """The native config, and what the authors' one says beside it."""

    config: InternVLConfig
    dropped: dict[str, str]
    """Keys with a value that the native config has no place for, and what that means."""


def tile_size(source: Source) -> int:
    """Edge of a tile in pixels."""
    return source.config.get("force_image_size") or _vision_config(source.config)["image_size"]


def tokens_per_tile(source: Source) -> int:
    """Image tokens that stand for one tile."""
    patches = tile_size(source) // _vision_config(source.config)["patch_size"]
    return int(patches**2 * source.config.get("downsample_ratio", 0.5) ** 2)


def convert_config(source: Source, *, image_token_id: int) -> ConvertedConfig:
    """The native config of `source`.

    Args:
        source: the checkpoint.
        image_token_id: of the token that image features replace.

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
    eps = native_vision["layer_norm_eps"]
    if native_vision["use_qk_norm"] and eps != QK_NORM_EPS:
        raise ModelError(
            f"layer_norm_eps is {eps}; with qk_normalization it must be {QK_NORM_EPS}", where=where
        )
    # A head that is stored is used, as in the authors' code, whatever the config says.
    tied = text.get("tie_word_embeddings", False) and not any(name in HEAD_WEIGHTS for name in source.weights)
    dtype = top.get("torch_dtype") or text.get("torch_dtype")
    native = {
        "vision_config": {**native_vision, "dtype": dtype},
        "text_config": {**_text_config(text, tied=tied, where=where), "dtype": dtype},
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
    unread = [
        *_unread(top, {*TOP_KEYS, *FIXED, *_repeated(top, text)}, ""),
        *_unread(vision, {*VISION_KEYS, *FIXED_VISION}, "vision_config."),
        *_unread(text, {*TEXT_KEYS, *QWEN2_KEYS, *FIXED_TEXT, *BIAS_KEYS, "rope_scaling"}, "llm_config."),
    ]
    dropped = {key: HARMLESS.get(key.rpartition(".")[2], "not known here") for key in unread}
    return ConvertedConfig(config=config, dropped=dropped)


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
            f"its language model '{architecture}' is not known", where=where, fix=f"Known are {known}"
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
                f"{name}{key} is {value!r}; the native classes can express {possible!r} alone", where=where
            )


def _repeated(top: dict[str, Any], text: dict[str, Any]) -> set[str]:
    """Keys of the language model that newer versions of the authors' code repeat at the top."""
    return {key for key in top.keys() & text.keys() if top[key] == text[key]}


def _unread(part: dict[str, Any], read: set[str], name: str) -> list[str]:
    return sorted(
        name + key for key, value in part.items() if key not in read | HOUSEKEEPING and value is not None
    )
