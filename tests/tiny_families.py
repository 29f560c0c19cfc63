"""A tiny VLM of every family that training knows, with random weights and a tokenizer of its own.

Each is the family's real transformers class with its real processor, the special tokens and the manner of
chat template of the published checkpoints, and the mechanisms that make the family differ: tiles, windows,
DeepStack, padded grids, bidirectional image tokens, sliding windows. Two calls write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
)

from genrecal.demo.pair import (
    INTERNVL_TOKENS,
    QWEN2_VL_TOKENS,
    InternVLShape,
    Qwen2VLShape,
    train_tokenizer,
    write_internvl,
    write_qwen2_vl,
)
from genrecal.models.processors import SmolVLMProcessor
from tests.tiny import CORPUS
from tests.tiny_tokenizers import (
    GEMMA_TURNS,
    IDEFICS_TURNS,
    LLAMA_TURNS,
    LLAVA_TURNS,
    QWEN_TURNS,
    gemma_tokenizer,
    llama_tokenizer,
    qwen_tokenizer,
)

HIDDEN, HEADS, LAYERS = 32, 2, 3
STD = 0.06
TILE, PATCH = 24, 6
TOKENS_PER_TILE = (TILE // PATCH // 2) ** 2
# Text models of one shape; families add what is their own.
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "initializer_range": STD,
    "max_position_embeddings": 4096,
}
SIGLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _corpus(family: str) -> list[str]:
    """The same words told in another order and number, so that no two tokenizers merge alike."""
    shift = sorted(WRITERS).index(family)
    return [*CORPUS[shift % len(CORPUS) :], *CORPUS * (shift + 1)]


def _generation(tokenizer: Any, *ends: str) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=8,
        eos_token_id=[tokenizer.convert_tokens_to_ids(end) for end in ends],
        pad_token_id=tokenizer.pad_token_id,
    )


def _save(folder: Path, make: Callable[[Any], Any], config: Any, processor: Any, *ends: str) -> None:
    torch.manual_seed(sum(map(ord, type(processor).__name__)))
    model = make(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Some start at zero, and an image that reaches nothing would hide every mistake.
            if "mm_input_projection" in name or "image_newline" in name:
                parameter.normal_(std=0.3)
    model.generation_config = _generation(processor.tokenizer, *ends)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _ids(tokenizer: Any) -> dict[str, int]:
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}


def _qwen2_vl(folder: Path) -> None:
    shape = Qwen2VLShape(
        vocabulary=306,
        patch=4,
        min_pixels=16 * 16,
        max_pixels=48 * 48,
        vision_hidden=32,
        vision_heads=2,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        key_value_heads=1,
        intermediate=48,
    )
    write_qwen2_vl(folder, _corpus("qwen2_vl"), shape=shape, seed=1)


def _internvl(folder: Path) -> None:
    shape = InternVLShape(
        vocabulary=322,
        tile=TILE,
        patch=PATCH,
        max_tiles=3,
        vision_hidden=32,
        vision_layers=2,
        vision_heads=2,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        key_value_heads=1,
        intermediate=48,
    )
    write_internvl(folder, _corpus("internvl"), shape=shape, seed=0)


def _internvl_llama(folder: Path) -> None:
    special = (
        "<|begin_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        *INTERNVL_TOKENS[3:],
    )
    tokenizer = llama_tokenizer(
        _corpus("internvl_llama"),
        314,
        special,
        end="<|eot_id|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config={
            **SIGLIP,
            "image_size": [TILE, TILE],
            "patch_size": [PATCH, PATCH],
            "norm_type": "rms_norm",
            "use_qk_norm": True,
        },
        text_config={"model_type": "llama", **TEXT, **_ids(tokenizer), "tie_word_embeddings": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            crop_to_patches=True, min_patches=1, max_patches=4, size={"height": TILE, "width": TILE}
        ),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_TILE,
        chat_template=LLAMA_TURNS,
    )
    _save(folder, InternVLForConditionalGeneration, config, processor, "<|eot_id|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def _qwen_images() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=56 * 56
    )


def _qwen2_5_vl(folder: Path) -> None:
    tokenizer = qwen_tokenizer(_corpus("qwen2_5_vl"), 318, QWEN2_VL_TOKENS)
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            **_ids(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,  # two by two image tokens; the second block sees the whole image
            "fullatt_block_indexes": [1],
            "out_hidden_size": HIDDEN,
        },
        **_qwen_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(_qwen_images(), tokenizer, chat_template=QWEN_TURNS)
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, "<|im_end|>", "<|endoftext|>")


def _qwen3_vl(folder: Path) -> None:
    tokenizer = qwen_tokenizer(_corpus("qwen3_vl"), 330, QWEN2_VL_TOKENS)
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            **_ids(tokenizer),
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
            "out_hidden_size": HIDDEN,
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    processor = Qwen3VLProcessor(_qwen_images(), tokenizer, chat_template=QWEN_TURNS)
    _save(folder, Qwen3VLForConditionalGeneration, config, processor, "<|im_end|>", "<|endoftext|>")


def _llava_onevision(folder: Path) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    tokenizer = qwen_tokenizer(_corpus("llava_onevision"), 326, special)
    grid = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT, **_ids(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_4",  # 3 x 3 tiles are thinned out
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": TILE, "width": TILE}, image_grid_pinpoints=grid, **HALF),
        tokenizer,
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TURNS,
        vision_aspect_ratio="anyres_max_4",
    )
    _save(folder, LlavaOnevisionForConditionalGeneration, config, processor, "<|im_end|>")


def _tile_marks() -> tuple[str, ...]:
    return tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))


def _idefics_like(config_class: Any, tokenizer: Any, *, tied: bool) -> Any:
    return config_class(
        vision_config={**SIGLIP, "initializer_range": STD},
        text_config={"model_type": "llama", **TEXT, **_ids(tokenizer), "tie_word_embeddings": tied},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=tied,
    )


def _idefics3(folder: Path) -> None:
    special = (
        "<|begin_of_text|>",
        "<|reserved_special_token_0|>",
        "<|end_of_text|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *_tile_marks(),
    )
    tokenizer = llama_tokenizer(_corpus("idefics3"), 334, special, end="<|end_of_text|>")
    config = _idefics_like(Idefics3Config, tokenizer, tied=False)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}, **HALF
        ),
        tokenizer,
        image_seq_len=TOKENS_PER_TILE,
        chat_template="<|begin_of_text|>" + IDEFICS_TURNS,
    )
    ends = ("<end_of_utterance>", "<|end_of_text|>")
    _save(folder, Idefics3ForConditionalGeneration, config, processor, *ends)


def _smolvlm(folder: Path) -> None:
    special = (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *_tile_marks(),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(_corpus("smolvlm"), special, 338),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        additional_special_tokens=[token for token in special[2:] if token != "<end_of_utterance>"],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=4096,
    )
    config = _idefics_like(SmolVLMConfig, tokenizer, tied=True)
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}, **HALF),
        tokenizer,
        image_seq_len=TOKENS_PER_TILE,
        chat_template="<|im_start|>" + IDEFICS_TURNS,
    )
    _save(folder, SmolVLMForConditionalGeneration, config, processor, "<end_of_utterance>")


def _gemma3(folder: Path) -> None:
    special = (
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    tokenizer = gemma_tokenizer(_corpus("gemma3"), 360, special)
    config = Gemma3Config(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        vision_config={**SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=TOKENS_PER_TILE,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": TILE, "width": TILE}, **HALF),
        tokenizer,
        chat_template=GEMMA_TURNS,
        image_seq_length=TOKENS_PER_TILE,
    )
    _save(folder, Gemma3ForConditionalGeneration, config, processor, "<eos>", "<end_of_turn>")


# InternVL twice: with Qwen2 and with Llama below it.
WRITERS: dict[str, Callable[[Path], None]] = {
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "internvl_llama": _internvl_llama,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}


def write_family(name: str, folder: Path) -> Path:
    """Write the tiny VLM `name`, one of WRITERS, to `folder`; returns the folder."""
    WRITERS[name](folder)
    return folder
