"""The authors' tokenizer files -> a fast tokenizer that knows the tokens around an image.

Qwen2Tokenizer            vocab.json, merges.txt    by transformers' own converter
PreTrainedTokenizerFast   tokenizer.json            as it is
InternLM2Tokenizer        tokenizer.model           internlm2_tokenizer.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

from genrecal.convert.chat import Chat
from genrecal.convert.internlm2_tokenizer import read_internlm2
from genrecal.convert.source import Source
from genrecal.core.errors import ModelError
from genrecal.core.files import read_json

CONFIG = "tokenizer_config.json"
# What the processors call the tokens around an image and the one that image features replace.
IMAGE_TOKENS = {
    "internvl_chat": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    },
    "NVLM_D": {
        "start_image_token": "<|vision_start|>",
        "end_image_token": "<|vision_end|>",
        "context_image_token": "<|vision_pad|>",
    },
}
# InternVLProcessor wants a token for videos. A new one would have no embedding, so one takes its place that
# the vocabulary has and no prompt uses: the first of these kinds, of several the one with the lowest id.
VIDEO_TOKENS = tuple(
    re.compile(pattern)
    for pattern in (
        r"<video>",
        r"<\|video_pad\|>",
        r"\[UNUSED_TOKEN_\d+\]",
        r"<\|reserved_special_token_\d+\|>",
        r"<quad>",
    )
)
# Not token_type_ids, which generate() refuses.
MODEL_INPUTS = ["input_ids", "attention_mask"]
LOADERS: dict[str, type[PreTrainedTokenizerFast]] = {
    "Qwen2Tokenizer": Qwen2TokenizerFast,
    "Qwen2TokenizerFast": Qwen2TokenizerFast,
    "PreTrainedTokenizerFast": PreTrainedTokenizerFast,
}
INTERNLM2_KEYS = (
    "unk_token",
    "bos_token",
    "eos_token",
    "pad_token",
    "additional_special_tokens",
    "model_max_length",
    "clean_up_tokenization_spaces",
)


def convert_tokenizer(source: Source, chat: Chat, *, chat_template: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of `source`; every text gets the ids that the authors' tokenizer gives it.

    Its end-of-sequence token is the one that ends a turn, which is what the authors' `chat` stops at.

    Raises:
        ModelError: a tokenizer of another kind, or one without a token that is needed.
    """
    where = source.folder / CONFIG
    raw = _load(source, _settings(where))
    vocabulary = raw.get_vocab()
    extra = {**IMAGE_TOKENS[source.layout], "video_token": _video_token(vocabulary)}
    for name, token in (*extra.items(), ("end_of_turn", chat.end_of_turn)):
        if token not in vocabulary:
            raise ModelError(f"its tokenizer has no token '{token or name}'", where=where)
    tokenizer = type(raw)(
        tokenizer_object=raw.backend_tokenizer,
        bos_token=raw.bos_token,
        unk_token=raw.unk_token,
        eos_token=chat.end_of_turn,
        pad_token=raw.pad_token or raw.eos_token,
        additional_special_tokens=raw.additional_special_tokens,
        extra_special_tokens=extra,
        model_max_length=raw.model_max_length,
        padding_side=raw.padding_side,
        clean_up_tokenization_spaces=raw.clean_up_tokenization_spaces,
        model_input_names=MODEL_INPUTS,
        chat_template=chat_template,
    )
    if len(tokenizer) != len(raw):
        raise ModelError(
            f"has {len(tokenizer) - len(raw)} special tokens outside its vocabulary", where=where
        )
    return tokenizer


def _video_token(vocabulary: dict[str, int]) -> str:
    """An empty text where there is none."""
    for pattern in VIDEO_TOKENS:
        if found := [token for token in vocabulary if pattern.fullmatch(token)]:
            return min(found, key=lambda token: vocabulary[token])
    return ""


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError("no such tokenizer file", where=path, fix="Download it")
    return read_json(path)


def _load(source: Source, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    kind = settings.get("tokenizer_class")
    if kind in ("InternLM2Tokenizer", "InternLM2TokenizerFast"):
        named = {key: settings[key] for key in INTERNLM2_KEYS if settings.get(key) is not None}
        return PreTrainedTokenizerFast(
            tokenizer_object=read_internlm2(source.folder / "tokenizer.model", settings), **named
        )
    if kind not in LOADERS:
        raise ModelError(
            f"its tokenizer is a '{kind}'",
            where=source.folder / CONFIG,
            fix=f"Known are InternLM2Tokenizer, {', '.join(LOADERS)}",
        )
    try:
        return LOADERS[kind].from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"its tokenizer cannot be read ({reason})", where=source.folder) from error
