"""Two VLMs with fresh weights that share nothing: an InternVL and a Qwen2-VL, each with its own tokenizer.

Both are the real transformers classes with real processors, written with `save_pretrained`, so that the
Auto classes load them from disk like any published checkpoint.

    InternVL  image -> tiles of `tile` px (+ thumbnail) -> (tile / 2 patch)**2 tokens a tile
    Qwen2-VL  image -> its own size, rounded to 2 patches -> (height / 2 patch) * (width / 2 patch) tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

import genrecal.models.processors  # noqa: F401  (the processors below load without torchvision)
from genrecal.core.config import Config

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
QWEN2_VL_TOKENS = (
    PADDING,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
INTERNVL_TOKENS = (PADDING, "<|im_start|>", END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words and single digits with their leading space, runs of other marks, newlines.
WORDS = Regex(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\n|\s+")
# Of the language model's weights: transformers' 0.02 suits widths of thousands; at widths of a hundred it
# leaves attention flat for most of a short training.
INITIAL_STD = 0.06


class InternVLShape(Config):
    """Sizes of an InternVL; head sizes are hidden / heads."""

    vocabulary: int = 640
    """Entries of the BPE tokenizer at the most, special tokens included."""
    tile: int = 72
    """Edge of a square tile in pixels."""
    patch: int = 12
    """Edge of a patch in pixels; 2 x 2 patches make one image token."""
    max_tiles: int = 4
    """Tiles at the most that an image is cut into, without the thumbnail."""
    vision_hidden: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 256


class Qwen2VLShape(Config):
    """Sizes of a Qwen2-VL; head sizes are hidden / heads."""

    vocabulary: int = 512
    """Entries of the BPE tokenizer at the most, special tokens included."""
    patch: int = 8
    """Edge of a patch in pixels; 2 x 2 patches make one image token."""
    min_pixels: int = 32 * 32
    max_pixels: int = 192 * 192
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_heads: int = 4
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 160


def train_tokenizer(corpus: Iterable[str], special: tuple[str, ...], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary` entries, learned from `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer, special: tuple[str, ...], template: str, **extra: str) -> Qwen2TokenizerFast:
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        additional_special_tokens=[token for token in special if token not in (END_OF_TURN, PADDING)],
        extra_special_tokens=extra,
        chat_template=template,
        model_max_length=4096,
    )


def _generation(tokenizer: Qwen2TokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_internvl(folder: Path, corpus: Iterable[str], *, shape: InternVLShape, seed: int) -> None:
    """Write an InternVL with random weights and a tokenizer learned from `corpus` to `folder`."""
    template = CHAT_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>")
    tokenizer = _wrap(
        train_tokenizer(corpus, INTERNVL_TOKENS, shape.vocabulary),
        INTERNVL_TOKENS,
        template,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    tokens_per_tile = (shape.tile // (2 * shape.patch)) ** 2
    config = InternVLConfig(
        vision_config={
            "hidden_size": shape.vision_hidden,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "intermediate_size": 2 * shape.vision_hidden,
            "image_size": [shape.tile, shape.tile],
            "patch_size": [shape.patch, shape.patch],
            "norm_type": "layer_norm",
            "attention_bias": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "initializer_range": INITIAL_STD,
            "max_position_embeddings": 4096,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens_per_tile,
        downsample_ratio=0.5,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config)
    model.generation_config = _generation(tokenizer)
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            crop_to_patches=True,
            min_patches=1,
            max_patches=shape.max_tiles,
            size={"height": shape.tile, "width": shape.tile},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        tokenizer=tokenizer,
        image_seq_length=tokens_per_tile,
        chat_template=template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_qwen2_vl(folder: Path, corpus: Iterable[str], *, shape: Qwen2VLShape, seed: int) -> None:
    """Write a Qwen2-VL with random weights and a tokenizer learned from `corpus` to `folder`."""
    template = CHAT_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = _wrap(train_tokenizer(corpus, QWEN2_VL_TOKENS, shape.vocabulary), QWEN2_VL_TOKENS, template)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN2_VL_TOKENS}
    head = shape.hidden // shape.heads
    # M-RoPE shares the rotary pairs of a head among time, height and width as Qwen2-VL does: 1/4, 3/8, 3/8.
    pairs = head // 2
    sections = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "initializer_range": INITIAL_STD,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "mrope_section": sections},
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": shape.vision_layers,
            "embed_dim": shape.vision_hidden,
            "hidden_size": shape.hidden,
            "num_heads": shape.vision_heads,
            "mlp_ratio": 2,
            "patch_size": shape.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = _generation(tokenizer)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=shape.patch,
            merge_size=2,
            temporal_patch_size=2,
            min_pixels=shape.min_pixels,
            max_pixels=shape.max_pixels,
        ),
        tokenizer=tokenizer,
        chat_template=template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
